"""Files the command line writes beside outputs.txt: raw logits, and our JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import write_atomically
from harness.runtime.engine import Engine
from harness.runtime.flags import Flags
from harness.runtime.generate import Generation
from harness.runtime.score import rows_json, top_rows
from harness.runtime.session import Session
from harness.runtime.stats import Stats, peak_rss_kib


def write_logits(path: Path, turns: Sequence[Generation]) -> None:
    """Raw logits, row-major, in the graph's dtype: the prompts' rows of all turns, then the decode steps' rows."""
    prompts = [turn.prompt_logits for turn in turns if turn.prompt_logits is not None]
    decodes = [turn.decode_logits for turn in turns if turn.decode_logits is not None]
    path.write_bytes(b"".join(rows.tobytes() for rows in (*prompts, *decodes)))


def stats_json(
    flags: Flags, engine: Engine, session: Session, loads: Stats, turns: Sequence[tuple[Stats, Generation]]
) -> dict[str, Any]:
    """What `--x_stats_path` holds: times in ms, sizes in bytes but for `peak_rss_kib`."""
    info = engine.info
    return {
        "pte": {
            "mode": str(info.mode),
            "context_len": info.context_len,
            "ar_len": {name: graph.ar_len for name, graph in info.graphs.items()},
            "kv_dtype": info.kv_dtype,
            "soc": info.delegate.soc if info.delegate else None,
        },
        "seed": flags.integer("x_seed"),
        "temperature": flags.number("temperature"),
        "ignore_eos": flags.switch("x_ignore_eos"),
        "peak_rss_kib": peak_rss_kib(),
        "model_load_ms": loads.model_load_end_ms - loads.model_load_start_ms,
        "step_ms": {name: [round(ms, 3) for ms in steps] for name, steps in sorted(engine.step_ms.items())},
        "kv_bytes_per_step": session.bytes_per_step,
        "kv_bytes_switch": session.cache.copied.switch,
        "turns": [
            {
                "prompt_tokens": list(turn.prompt),
                "tokens": list(turn.tokens),
                "stopped": turn.stopped,
                "decode_steps": turn.decode_steps,
                "accepted": turn.accepted,
                "ttft_ms": stats.first_token_ms - stats.inference_start_ms,
                "rows": None if turn.chosen_from is None else rows_json(top_rows(turn.chosen_from, info)),
                "row_choices": [list(step) for step in turn.row_choices],
            }
            for stats, turn in turns
        ],
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes JSON at once: a reader sees the whole file or none."""
    write_atomically(path, json.dumps(data))
