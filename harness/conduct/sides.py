"""The two sides of `--ab BASE CANDIDATE`: each a Python environment, or a folder of `.pte` files."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.conduct.phone_files import BUILD_NAME, PhoneFiles, own_build_folder, phone_files
from harness.errors import ConfigError
from harness.rack.image import RUNNER
from harness.toolchain.describe import interpreter, toolchain_at
from harness.toolchain.environment import Toolchain, find_toolchain, fingerprint

BASE, CANDIDATE = "base", "candidate"


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: `base` or `candidate`.
        place: the environment's prefix, or the folder of `.pte` files.
        toolchain: what it builds and runs with.
        fingerprint: of the toolchain.
        pte: the folder of `.pte` files; None: they are built.
        launcher: what starts its runner on a virtual phone; None: the phone's own.
        build: its ExecuTorch's build for Android, whose runner real phones get; None: that of the run.
        sdk: the QNN SDK that it compiles with and whose libraries real phones get; None: that of the run.
    """

    name: str
    place: Path
    toolchain: Toolchain
    fingerprint: dict[str, str]
    pte: Path | None = None
    launcher: str | None = None
    build: Path | None = None
    sdk: Path | None = None

    def phone_files(self) -> PhoneFiles:
        """What real phones get. Raises ConfigError where there is none, of this side or of the run."""
        return phone_files(self.build, self.sdk, f"--ab, {self.name} ({self.place})")


def read_side(name: str, place: Path, build: Path | None = None, sdk: Path | None = None) -> Side:
    """What a folder named on the command line is.

    Args:
        name: `base` or `candidate`.
        place: the folder.
        build: its build for Android, where it was given; else the one in its ExecuTorch's checkout, if it has one.
        sdk: its QNN SDK, where it was given.

    Raises:
        ConfigError: neither a Python environment nor a folder of `.pte` files, or one that cannot build.
    """
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder", where=f"--ab, {name}")
    if any(place.glob("*.pte")):
        toolchain = find_toolchain()
        # The checkout that this process runs with is neither side's own.
        own = place / BUILD_NAME
        build = build or (own if own.is_dir() else None)
        return Side(name, place, toolchain, fingerprint(toolchain), place, build=build, sdk=sdk)
    interpreter(place)
    toolchain, known = toolchain_at(place, sdk)
    build = build or own_build_folder(place, toolchain.executorch)
    return Side(name, place, toolchain, known, None, launcher(toolchain), build, sdk)


def launcher(toolchain: Toolchain) -> str:
    """The script that runs this harness's runner in a toolchain's environment on a virtual phone.

    What the phone's own runner says of the phone (its SoC, the core it is bound to) is kept. Pure.
    """
    exports = {
        **toolchain.exports(),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    lines = ["#!/bin/sh", "# The phone's own settings, then one side's environment."]
    lines.append(f'eval "$(grep \'^export HTPFARM_\' "${{HTPFARM_PHONE_ROOT:-}}{RUNNER}")"')
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(exports.items())]
    lines.append(f'exec {shlex.quote(str(toolchain.python))} -m harness.runtime "$@"')
    return "\n".join(lines) + "\n"
