"""Text and tokens: tokenizers, chat templates, scoring windows. Used by build, runtime and evaluate alike."""
