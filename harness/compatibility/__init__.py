"""The compatibility matrix: model × mode × SoC (× recipe), from the results of any number of runs."""

from harness.compatibility.matrix import Compatibility, Entry, State, compatibility
from harness.compatibility.result import Result

__all__ = ["Compatibility", "Entry", "Result", "State", "compatibility"]
