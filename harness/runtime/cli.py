"""`python -m harness.runtime`: qnn_llama_runner's command line over ExecuTorch's Python runtime.

Same flags, files (outputs.txt, inference_speed.txt, the raw logits), `PyTorchObserver` line on standard output, log
lines on standard error, and exit statuses where a driver looks at them: 1 for a bad flag, 134 (SIGABRT) where the
runner fails an ET_CHECK. Deliberate differences:

- What the runner does wrong in silence is refused with status 2: no prompt, or prompts in a spelling it does not
  collect (`--prompt=TEXT`); a lookahead .pte in eval_mode 0 or 1, or another in 2; lookahead settings that are not the
  .pte's; a backend that fails during generation.
- A load failure aborts with a tokenised prompt too (the runner exits 0).
- An empty prompt aborts with every template, not only with those that add nothing to it.
- A temperature is applied to dequantised logits, with `--x_seed` (the runner: to raw integers, seeded by the clock).
- A stop token ends generation as the first token too. `<0xE2>` and the like are written as bytes.
- A prompt longer than context − AR, but shorter than the context, runs; the runner aborts. A warning says so.
- `--shared_buffer` changes nothing: the simulator has no rpcmem. Attention sink is not there.
- On a virtual phone (`HTPFARM_PHONE_SOC`) a .pte for another HTP generation does not load; see `harness.runtime.phone`.

Our own flags: `--x_score_path`, `--x_score_output` (log-likelihoods, see `harness.runtime.score`; after the generation
if there is a prompt), `--x_stats_path` (a JSON of what the runner does not tell), `--x_seed`, `--x_ignore_eos`;
`--x_serve` (stay, and answer requests on standard input; see `harness.runtime.serve`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import ConfigError, HarnessError, ProductError
from harness.model_file import Mode
from harness.runtime.engine import Engine, import_runtime
from harness.runtime.files import stats_json, write_json, write_logits
from harness.runtime.flags import FlagError, Flags, HelpRequested, parse_flags, usage
from harness.runtime.generate import Generation, clamp_seq_len, generate
from harness.runtime.log import EtCheckError, EtLog
from harness.runtime.lookahead import Lookahead, Settings
from harness.runtime.phone import phone_soc, refusal
from harness.runtime.program import KV_GRAPH, PREFILL_GRAPH, ProgramInfo, mode_error, read_info
from harness.runtime.sampling import sampler
from harness.runtime.score import check_windows, read_request, result_json, score
from harness.runtime.serve import claim_stdio, ready, serve
from harness.runtime.session import Session
from harness.runtime.stats import Stats, now_ms, rss_kib
from harness.text.templates import Template, find_template, format_prompt
from harness.text.tokenizer import Tokenizer, load_tokenizer

REFUSED = 2
"""Exit status of what the runner would do wrong in silence."""

_MODES = {0: Mode.KV, 1: Mode.HYBRID, 2: Mode.LOOKAHEAD}
_LOAD_FAILED = EtCheckError(("result.h", 170, "CheckOk"), "hasValue_")


class _PhoneError(ProductError):
    """The virtual phone's HTP refuses the .pte."""


@dataclass(frozen=True)
class Loaded:
    """What `_load` prepares."""

    engine: Engine
    session: Session
    tokenizer: Tokenizer
    stop: frozenset[int]
    lookahead: Lookahead | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, or aborts the process as the runner does."""
    try:
        flags = parse_flags(sys.argv[1:] if arguments is None else arguments)
    except HelpRequested:
        print(usage())
        return 1  # as gflags
    except FlagError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    log = EtLog()
    try:
        _run(flags, log)
    except EtCheckError as failure:
        log.abort(failure)
    except HarnessError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"ERROR: {error.strerror}: {error.filename}", file=sys.stderr)
        return REFUSED
    return 0


def _run(flags: Flags, log: EtLog) -> None:
    channel = claim_stdio() if flags.switch("x_serve") else None
    template = _check_flags(flags, log)
    request = read_request(Path(flags.text("x_score_path"))) if flags.text("x_score_path") else None
    loads = Stats()
    output = Path(flags.text("output_path"))
    try:
        loaded = _load(flags, log, template, loads)
    except HarnessError as error:
        if not isinstance(error, _PhoneError):  # a phone says no more than it said
            print(f"ERROR: {error}", file=sys.stderr)
        output.write_bytes(b"")  # the runner opens it before it finds out
        raise _LOAD_FAILED from None
    if channel:
        load_ms = loads.model_load_end_ms - loads.model_load_start_ms
        settings = loaded.lookahead.settings if loaded.lookahead else None
        serve(channel, loaded.session, ready(loaded.session.info, loaded.tokenizer, load_ms), settings)
        return
    output.write_bytes(b"")
    if request:
        check_windows(loaded.session.info, request.windows, request.graph)
    turns = _generate(flags, log, template, loaded, loads, output)
    scores = None
    if request:
        results = score(loaded.session, request.windows, request.graph)
        scores = result_json(results, request.graph)
        write_json(Path(flags.text("x_score_output")), scores)
    if flags.text("x_stats_path"):
        stats = stats_json(flags, loaded.engine, loaded.session, loads, turns)
        write_json(Path(flags.text("x_stats_path")), stats)


def _check_flags(flags: Flags, log: EtLog) -> Template:
    main_place = ("qnn_llama_runner.cpp", 310, "main")
    if "prompt" in flags.given and "tokenized_prompt" in flags.given:
        raise EtCheckError(main_place, "false", "Only provide prompt or tokenized_input but not both.")
    if "dump_logits_path" in flags.given and flags.integer("eval_mode") != 0:
        raise EtCheckError(main_place, "false", "Only TokenGenerator(kv) mode is supported to dump all logits.")
    if flags.integer("eval_mode") not in _MODES:
        raise EtCheckError(("runner.cpp", 181, "load"), "false", "Unsupported llama evaluation mode")
    try:
        template = find_template(flags.text("decoder_model_version"))
    except ConfigError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        raise EtCheckError(("runner.cpp", 151, "Runner"), "false", "Unsupported Decoder Model") from None
    log.info("runner.cpp", 154, f"creating module: model_path={flags.text('model_path')}")
    log.info("runner.cpp", 155, f"creating runner: tokenizer_path={flags.text('tokenizer_path')}")
    log.info("runner.cpp", 156, f"eval mode={flags.integer('eval_mode')}")
    if flags.text("attention_sink_rope_path"):
        raise ConfigError("attention sink is not supported", where="--attention_sink_rope_path")
    if flags.integer("eval_mode") == 2:
        _settings(flags)
    if bool(flags.text("x_score_path")) != bool(flags.text("x_score_output")):
        raise ConfigError("--x_score_path and --x_score_output go together", where="command line")
    if "prompt" in flags.given and len(flags.prompts) == 0:
        raise ConfigError(
            "qnn_llama_runner collects prompts from `--prompt TEXT` alone and would run none of these",
            where="--prompt",
            remedy="write --prompt and its text as two arguments",
        )
    if flags.switch("x_serve"):
        if flags.given & {"prompt", "tokenized_prompt", "dump_logits_path", "x_score_path", "x_stats_path"}:
            raise ConfigError("--x_serve takes its requests from standard input alone", where="command line")
        return template
    if not flags.prompts and "tokenized_prompt" not in flags.given and not flags.text("x_score_path"):
        raise ConfigError(
            "no prompt: qnn_llama_runner would write an empty file and exit 0",
            where="command line",
            remedy="give --prompt TEXT or --tokenized_prompt FILE",
        )
    if any(not prompt for prompt in flags.prompts):
        raise EtCheckError(
            ("runner.cpp", 368, "generate_from_prompt_or_file"), "!prompt.empty()", "prompt cannot be null"
        )
    if flags.number("temperature") < 0:
        raise ConfigError("a temperature is 0 or more", where="--temperature")
    return template


def _load(flags: Flags, log: EtLog, template: Template, stats: Stats) -> Loaded:
    start = now_ms()
    path = Path(flags.text("tokenizer_path"))
    try:
        tokenizer = load_tokenizer(path)
    except ConfigError:
        log.error("runner.cpp", 195, f"Failed to load tokenizer with {path}")
        raise
    log.info("llm_runner_helper.cpp", 56, f"Loaded {tokenizer.kind} tokenizer")
    stop = _stop_tokens(flags, template, tokenizer)
    info = read_info(Path(flags.text("model_path")))
    graphs = _graphs(info, flags.integer("eval_mode"), log)
    lookahead = _lookahead(flags, info, log)
    if refused := refusal(info, phone_soc(os.environ)):
        print("\n".join(refused.qnn), file=sys.stderr, flush=True)
        for file, line, text in refused.errors:
            log.error(file, line, text)
        raise _PhoneError("the phone's HTP refuses the .pte", where=str(info.path))
    checked_ms = now_ms() - start
    import_runtime()
    stats.model_load_start_ms = now_ms() - checked_ms
    engine = Engine(info)
    engine.load(graphs)
    log.info("runner.cpp", 233, "Reading metadata from model")
    session = Session(engine, graphs[0])
    log.info("runner.cpp", 345, "creating io_memory")
    stats.model_load_end_ms = now_ms()
    return Loaded(engine, session, tokenizer, frozenset() if flags.switch("x_ignore_eos") else stop, lookahead)


def _stop_tokens(flags: Flags, template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a turn: the tokenizer's EOS and the template's own.

    Raises:
        ConfigError: the tokenizer does not know the template's; the runner would stop at the first of its pieces.
    """
    stop = {tokenizer.eos}
    if template.stop:
        stop.add(tokenizer.special(template.stop))
        if None in stop:
            version = flags.text("decoder_model_version")
            raise ConfigError(
                f"the tokenizer has no token {template.stop!r}, which ends a turn of {version}",
                where=f"--decoder_model_version {version} with --tokenizer_path {flags.text('tokenizer_path')}",
                remedy="give the model's own tokenizer, or the version that the model is",
            )
    return frozenset(token for token in stop if token is not None)


def _settings(flags: Flags) -> Settings:
    return Settings(flags.integer("ngram"), flags.integer("window"), flags.integer("gcap"))


def _lookahead(flags: Flags, info: ProgramInfo, log: EtLog) -> Lookahead | None:
    """The state of lookahead decoding; None in other modes.

    Raises:
        ConfigError: the .pte was compiled with other settings. The runner would read its mask out of bounds.
    """
    if _MODES[flags.integer("eval_mode")] is not Mode.LOOKAHEAD:
        return None
    settings = _settings(flags)
    compiled = info.lookahead
    if (compiled is not None and compiled != settings) or settings.ar_len != info.kv.ar_len:
        raise ConfigError(
            f"lookahead with {settings} takes {settings.ar_len} tokens a step; the .pte was compiled "
            + (f"with {compiled}" if compiled else f"for {info.kv.ar_len}"),
            where="--ngram, --window, --gcap",
            remedy="give the settings that the .pte was compiled with",
        )
    log.info(
        "lhd_token_generator.h",
        73,
        f"Use Lookahead decoding: ngram={settings.ngram}, window={settings.window}, gcap={settings.gcap}",
    )
    return Lookahead(settings, flags.integer("x_seed"))


def _graphs(info: ProgramInfo, eval_mode: int, log: EtLog) -> list[str]:
    """Names of the graphs the mode uses, the prompt's first."""
    mode = _MODES[eval_mode]
    if (info.mode is Mode.LOOKAHEAD) != (mode is Mode.LOOKAHEAD):
        raise mode_error(info, mode)
    if mode is Mode.KV:
        return [KV_GRAPH]
    if info.prefill is None:
        log.error("program.cpp", 213, f"No method named '{PREFILL_GRAPH}' in program")
        raise mode_error(info, mode)
    return [PREFILL_GRAPH, KV_GRAPH]


def _generate(
    flags: Flags, log: EtLog, template: Template, loaded: Loaded, loads: Stats, output: Path
) -> list[tuple[Stats, Generation]]:
    info = loaded.session.info
    choose = sampler(flags.number("temperature"), info.logits_scale, info.logits_zero_point, flags.integer("x_seed"))
    text = bytearray()
    begun = False  # the turn's first token is there

    def emit(previous: int, token: int) -> None:
        nonlocal begun
        text.extend(loaded.tokenizer.piece(previous, token))
        if not begun:
            begun = True
            log.info("runner.cpp", 449, f"RSS after prompt prefill: {rss_kib() / 1024:f} MiB (0 if unsupported)")

    turns: list[tuple[Stats, Generation]] = []
    tokenized = flags.text("tokenized_prompt") if "tokenized_prompt" in flags.given else None
    prompts = [tokenized] if tokenized is not None else list(flags.prompts) * max(flags.integer("num_iters"), 0)
    for prompt in prompts:
        stats = Stats(loads.model_load_start_ms, loads.model_load_end_ms, now_ms())
        seq_len = _seq_len(flags.integer("seq_len"), info.context_len, log)
        if tokenized is not None:
            shown, tokens = tokenized, _read_tokens(Path(tokenized))
        else:
            plain = os.fsencode(prompt).decode("utf-8", errors="replace")
            shown = format_prompt(template, plain, flags.text("system_prompt"))
            tokens = loaded.tokenizer.encode(shown, bos=loaded.session.n_past == 0)
        _check_length(loaded.session, tokens, seq_len, log)
        text.extend(os.fsencode(shown))
        begun = False
        result = generate(
            loaded.session,
            tokens,
            seq_len=seq_len,
            choose=choose,
            stop=loaded.stop,
            emit=emit,
            stats=stats,
            keep_logits=bool(flags.text("dump_logits_path")),
            lookahead=loaded.lookahead,
        )
        if loaded.lookahead:
            counts = f"n_generated = {len(result.tokens) - 1} / n_accept = {result.accepted}"
            log.info("lhd_token_generator.cpp", 409, f"Lookahead Decoding: {counts}")
        turns.append((stats, result))
        _report(flags, log, stats, result, seq_len, info.context_len)
        if flags.text("dump_logits_path"):
            write_logits(Path(flags.text("dump_logits_path")), [turn for _, turn in turns])
    output.write_bytes(bytes(text))
    return turns


def _seq_len(asked: int, context_len: int, log: EtLog) -> int:
    if asked > context_len:
        log.info(
            "runner.cpp",
            381,
            f"Warning: Requested seq_len ({asked}) exceeds compiled max_context_len ({context_len}) without attention "
            f"sink. Clamping to {context_len}.",
        )
    elif asked <= 0:
        log.info(
            "runner.cpp", 389, f"Warning: Invalid seq_len ({asked}). Using compiled max_context_len ({context_len})."
        )
    return clamp_seq_len(asked, context_len)


def _read_tokens(path: Path) -> list[int]:
    try:
        data = path.read_bytes()
    except OSError:
        raise EtCheckError(
            ("runner.cpp", 413, "generate_from_prompt_or_file"),
            "false",
            f"Unable to read tokenized prompt from file: {path}",
        ) from None
    return [int(token) for token in np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8")]


def _check_length(session: Session, tokens: list[int], seq_len: int, log: EtLog) -> None:
    place = ("runner.cpp", 428, "generate_from_prompt_or_file")
    count = len(tokens)
    if count < 1:
        raise EtCheckError(place, "num_prompt_tokens >= 1", "Expected at least 1 prompt token")
    if session.n_past + count >= seq_len:
        raise EtCheckError(
            place,
            "end_pos < static_cast<int64_t>(seq_len)",
            "sequence length exceeded - please increase the seq_len value",
        )
    if bad := [token for token in tokens if token >= session.info.vocab]:
        raise ConfigError(f"token {bad[0]} is outside the vocabulary of {session.info.vocab}", where="prompt")
    ar_len = session.prefill_graph.ar_len
    if session.n_past + count > session.info.context_len - ar_len:
        log.info(
            "prompt_processor.cpp",
            0,
            f"Warning: qnn_llama_runner refuses prompts beyond {session.info.context_len} - {ar_len} tokens; "
            f"this one has {session.n_past + count}",
        )
    iterations = 1 + (count - 1) // ar_len
    log.info(
        "prompt_processor.cpp",
        270,
        f"Prompt Processor: total {count} prompt tokens (AR-{ar_len} * {iterations} iters)",
    )


def _report(flags: Flags, log: EtLog, stats: Stats, result: Generation, seq_len: int, context_len: int) -> None:
    print(flush=True)  # the runner ends the generated text's line
    if result.stopped:
        log.info("token_generator.cpp", 300, "\nReached to the end of generation")
    else:
        log.info(
            "token_generator.cpp",
            309,
            f"Warning: Generation stopped at seq_len limit ({seq_len}) without reaching EOS token. "
            "Response may be incomplete.",
        )
        if seq_len >= context_len:
            hint = f"already equals compiled max_context_len ({context_len}). Consider recompiling with larger "
            hint += "--max_context_len."
        else:
            hint = f"is less than compiled max_context_len ({context_len}). Consider increasing --seq_len (up to "
            hint += f"{context_len})."
        log.info("token_generator.cpp", 316, f"- seq_len ({seq_len}) {hint}")
    rss = rss_kib() / 1024
    log.info("runner.cpp", 470, f"RSS after finishing text generation: {rss:f} MiB (0 if unsupported)")
    print(stats.observer_line(), flush=True)
    for line in stats.report():
        log.info("stats.h", 150, line)
    speed = Path(flags.text("performance_output_path"))
    try:
        speed.write_text(stats.inference_speed(), encoding="ascii")
    except OSError:
        log.error("runner.cpp", 65, "Error saving the inference speed file")
        raise
