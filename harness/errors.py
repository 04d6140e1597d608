"""Errors a person reads: what happened, where, and what to do about it.

Each carries the failure class that decides what follows (retry, skip, refuse; see the table in the README).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class FailureClass(StrEnum):
    """Why a cell did not pass, and therefore what the harness does next."""

    PRODUCT = "PRODUCT"
    PERF = "PERF"
    BUILD = "BUILD"
    INFRA = "INFRA"
    ENV = "ENV"
    CRASH = "CRASH"
    UNSUPPORTED = "UNSUPPORTED"
    CONFIG = "CONFIG"
    NOT_JUDGED = "NOT_JUDGED"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


class HarnessError(Exception):
    """Base of all errors the harness raises on purpose.

    Args:
        what: what happened, one sentence.
        where: the place: `file:line: key`, or phone, serial and command.
        remedy: what the reader can do about it.
        evidence: output that proves it (a log's tail, the adb output); printed last.
    """

    failure_class: ClassVar[FailureClass] = FailureClass.PRODUCT

    def __init__(self, what: str, *, where: str = "", remedy: str = "", evidence: str = "") -> None:
        super().__init__(what, where, remedy, evidence)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.evidence = evidence

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.remedy:
            text += f"\n  what to do: {self.remedy}"
        if self.evidence:
            indented = "\n    ".join(self.evidence.rstrip().splitlines())
            text += f"\n  evidence:\n    {indented}"
        return text

    def to_data(self) -> dict[str, str]:
        """For another process; see `error_from_data`. An error itself does not survive pickling."""
        return {
            "class": self.failure_class.value,
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
            "evidence": self.evidence,
        }


class ConfigError(HarnessError):
    """Bad YAML, an unknown model, SoC or option: refused before anything runs."""

    failure_class = FailureClass.CONFIG


class BuildError(HarnessError):
    """Export or lowering failed: an error on all cells of the artifact, once."""

    failure_class = FailureClass.BUILD


class InfraError(HarnessError):
    """adb timed out, a phone is lost, a push failed, no phone is free."""

    failure_class = FailureClass.INFRA


class EnvError(HarnessError):
    """The phone or host is not fit to measure on: too hot, battery low, storage full."""

    failure_class = FailureClass.ENV


class ProductError(HarnessError):
    """The thing under test is wrong: bad output, perplexity out of bounds, runner aborted."""

    failure_class = FailureClass.PRODUCT


class UnsupportedError(HarnessError):
    """The phone's HTP generation cannot do it."""

    failure_class = FailureClass.UNSUPPORTED


class CrashError(HarnessError):
    """The phone's boot id changed during a run."""

    failure_class = FailureClass.CRASH


class NotJudgedError(HarnessError):
    """Nothing to judge the phone by: its artifact has no witness, or one that lacks what is asked for."""

    failure_class = FailureClass.NOT_JUDGED


class InconclusiveError(HarnessError):
    """A figure stayed beyond its bound by less than chance allows, up to the most tokens that may be scored."""

    failure_class = FailureClass.INCONCLUSIVE


class InvalidError(HarnessError):
    """A measurement contradicts another one of the same thing: the runner's clock and the host's disagree."""

    failure_class = FailureClass.INVALID


def error_from_data(data: Mapping[str, str]) -> HarnessError:
    """Of `HarnessError.to_data`: an error of that class."""
    known = {kind.failure_class: kind for kind in HarnessError.__subclasses__()}
    kind = known.get(FailureClass(data["class"]), BuildError)
    return kind(data["what"], where=data["where"], remedy=data["remedy"], evidence=data["evidence"])
