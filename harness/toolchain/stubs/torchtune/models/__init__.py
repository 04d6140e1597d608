"""Stub of torchtune.models."""
