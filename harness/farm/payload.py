"""What a run needs on a phone: the runner, its libraries, the model and the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.files import write_atomically
from harness.paths import cache_root
from harness.rack.image import LAUNCHER
from harness.soc import Soc

RUNNER = "qnn_llama_runner"

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class PayloadFile:
    """A file to deploy.

    Attributes:
        path: where it lies on this host.
        name: what it is called on the phone, without folders.
        executable: whether it is a program.
    """

    path: Path
    name: str
    executable: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} cannot name a file on a phone", remedy="use letters, digits, dots, _, + and -"
            )


@dataclass(frozen=True)
class Payload:
    """All files of a run, and which of them are what: `runner`, `model` and `tokenizer` are names in `files`."""

    files: tuple[PayloadFile, ...]
    runner: str
    model: str
    tokenizer: str


def sim_payload(pte: Path, tokenizer: Path, *, folder: Path | None = None, launcher: str = LAUNCHER) -> Payload:
    """For a virtual phone: a launcher in place of the runner, no libraries.

    Args:
        pte: the model, built for the simulator.
        tokenizer: its tokenizer.
        folder: where the launcher is written; in the user's cache if None.
        launcher: another script than the one that starts the phone's own runner; with a folder of its own.

    Raises:
        ConfigError: a file is missing.
    """
    place = (folder or cache_root() / "payload") / RUNNER
    if not place.is_file() or place.read_text() != launcher:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, launcher)
    return _payload([PayloadFile(place, RUNNER, executable=True)], pte, tokenizer)


def android_payload(pte: Path, tokenizer: Path, soc: Soc, *, build_folder: Path, qnn_sdk_root: Path) -> Payload:
    """For a real phone: what ExecuTorch's `SimpleADB.push` sends (1.5.1, `backends/qualcomm/export_utils.py`).

    Args:
        pte: the model, built for phones.
        tokenizer: its tokenizer.
        soc: the phone's chipset.
        build_folder: ExecuTorch's `build-android`.
        qnn_sdk_root: the QNN SDK the model was built with.

    Raises:
        ConfigError: files are missing; names all of them.
    """
    build, sdk, arch = build_folder, qnn_sdk_root, soc.arch
    android = sdk / "lib" / "aarch64-android"
    files = [
        PayloadFile(build / "examples/qualcomm/oss_scripts/llama" / RUNNER, RUNNER, executable=True),
        _library(build / "backends/qualcomm/libqnn_executorch_backend.so"),
        _library(android / "libQnnHtp.so"),
        _library(android / f"libQnnHtpV{arch}Stub.so"),
        _library(sdk / "lib" / f"hexagon-v{arch}" / "unsigned" / f"libQnnHtpV{arch}Skel.so"),
        _library(android / "libQnnHtpPrepare.so"),
        _library(android / "libQnnSystem.so"),
    ]
    return _payload(files, pte, tokenizer)


def _library(path: Path) -> PayloadFile:
    return PayloadFile(path, path.name)


def _payload(files: Iterable[PayloadFile], pte: Path, tokenizer: Path) -> Payload:
    every = (*files, PayloadFile(pte, pte.name), PayloadFile(tokenizer, tokenizer.name))
    if missing := [str(file.path) for file in every if not file.path.is_file()]:
        raise ConfigError(
            f"{len(missing)} of the {len(every)} files a run needs on the phone are missing",
            remedy="compile the model first; for a real phone, build ExecuTorch for Android "
            "(backends/qualcomm/scripts/build.sh) and let QNN_SDK_ROOT name the SDK",
            evidence="\n".join(missing),
        )
    return Payload(every, RUNNER, pte.name, tokenizer.name)
