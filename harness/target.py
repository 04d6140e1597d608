"""What an artifact is for."""

from __future__ import annotations

from enum import StrEnum


class Target(StrEnum):
    """What an artifact is for: phones (weight sharing, shared buffers), or the x86 simulator, which refuses both."""

    ANDROID = "android"
    SIM = "sim"
