"""All faults: importing this fills `faults.fault.CATALOG`. Nothing of the harness is loaded until one is planted."""

from __future__ import annotations

from faults import build, phone, runner_ahead, runner_cache, runner_inputs, runner_output
from faults.fault import CATALOG, Fault, Patch

__all__ = ["FAULTS", "Patch", "build", "phone", "runner_ahead", "runner_cache", "runner_inputs", "runner_output"]

FAULTS: dict[str, Fault] = CATALOG.faults
