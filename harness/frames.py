"""Messages between the host and a runner that stays: 4 bytes of length, big-endian, then a JSON object in UTF-8.

`harness.runtime.serve` says what the messages are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROTOCOL = 1
"""Version of the messages; the runner says it first."""
MAX_FRAME = 64 * 1024 * 1024
"""Bytes of JSON in a frame at most. A longer one is refused on sight of its length."""
HEADER_SIZE = 4

Message = dict[str, Any]


class FrameError(ValueError):
    """Bytes that are no frame, or a message that fits none."""


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """One frame.

    Raises:
        FrameError: it is too long, or holds what JSON does not (nan and infinity, for example).
    """
    try:
        body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:
        raise FrameError(f"a message that is not JSON: {error}") from None
    if len(body) > MAX_FRAME:
        raise FrameError(f"a message of {len(body)} bytes; a frame holds {MAX_FRAME}")
    return len(body).to_bytes(HEADER_SIZE, "big") + body


def take_frame(buffer: bytearray) -> Message | None:
    """Takes the first frame off `buffer`; None while it is not there in full.

    Raises:
        FrameError: it is too long, or no JSON object.
    """
    if len(buffer) < HEADER_SIZE:
        return None
    size = int.from_bytes(buffer[:HEADER_SIZE], "big")
    if size > MAX_FRAME:
        raise FrameError(f"a frame of {size} bytes; the limit is {MAX_FRAME} (it begins with {bytes(buffer[:40])!r})")
    if len(buffer) < HEADER_SIZE + size:
        return None
    body = bytes(buffer[HEADER_SIZE : HEADER_SIZE + size])
    del buffer[: HEADER_SIZE + size]
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame that is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError(f"a frame that holds no JSON object but {type(message).__name__}")
    return message
