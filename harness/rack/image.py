"""A virtual phone's file tree on the host: laid out once, properties and boot id renewed on every boot.

The tree mirrors the phone's own paths (`data`, `system`, `sys`, `dev/__properties__`,
`proc/sys/kernel/random/boot_id`), so the plain fallback can point commands at it by a prefix. `data` survives a reboot
and `rack down`; the rest is written anew.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from harness.files import write_atomically
from harness.rack.state import STATE, PhoneState, write_state

SCRIPTS = Path(__file__).resolve().parent / "bin"
RUNNER = "/system/bin/htpfarm-runner"
LAUNCHER = f'#!/bin/sh\nexec "${{HTPFARM_PHONE_ROOT:-}}{RUNNER}" "$@"\n'
"""Sent to a virtual phone in place of qnn_llama_runner, becomes the harness's own runner there."""
CONTROL = "dev/htpfarm-control"
PROPERTIES = "dev/__properties__"
BOOT_ID = "proc/sys/kernel/random/boot_id"
LOG = "data/misc/logd/main"
ANDROID_RELEASE, ANDROID_SDK = "15", "35"

_ACCEPTED = ("svc", "input", "wm", "am", "pm", "cmd", "stop", "start")
_HOST_TOOLS = """
[ awk basename base64 cat chmod chown cksum cmp cp cut date dd diff dirname du echo env expr false find free
getconf grep gzip head hostname id kill ln ls md5sum mkdir mkfifo mktemp mv nice nohup nproc od printf ps pwd
readlink realpath renice rm rmdir sed seq setsid sha1sum sha256sum sleep sort split stat stty sync tac tail
tar taskset tee test time timeout top touch tr true truncate tty uname uniq wc which whoami xargs yes
""".split()  # noqa: SIM905 - read as a list of words


class Kind(Protocol):
    """What of `harness.soc.PhoneKind` a virtual phone shows."""

    @property
    def key(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def manufacturer(self) -> str: ...
    @property
    def brand(self) -> str: ...
    @property
    def soc(self) -> str: ...
    @property
    def platform(self) -> str: ...
    @property
    def soc_manufacturer(self) -> str: ...


@dataclass(frozen=True)
class PhoneSpec:
    """One phone of a rack: a name, and what it pretends to be (fields as in `harness.soc.PhoneKind`)."""

    name: str
    kind: str
    model: str
    device: str
    manufacturer: str
    brand: str
    soc: str
    platform: str
    soc_manufacturer: str

    @classmethod
    def of(cls, name: str, kind: Kind) -> PhoneSpec:
        """The spec of a phone called `name`."""
        return cls(
            name=name,
            kind=kind.key,
            model=kind.model,
            device=kind.device,
            manufacturer=kind.manufacturer,
            brand=kind.brand,
            soc=kind.soc,
            platform=kind.platform,
            soc_manufacturer=kind.soc_manufacturer,
        )

    @property
    def serialno(self) -> str:
        """`ro.serialno`: eleven characters that follow from the name alone."""
        return "V" + hashlib.sha256(self.name.encode()).hexdigest()[:10].upper()

    def to_json(self) -> dict[str, str]:
        """For the rack's config file."""
        return asdict(self)


def properties(spec: PhoneSpec, boot_id: str) -> dict[str, str]:
    """The properties a freshly booted phone has; `sys.boot_completed` is 0 until it is up."""
    product = spec.device
    build = f"htpfarm.{ANDROID_SDK}"
    return {
        "ro.product.name": product,
        "ro.product.model": spec.model,
        "ro.product.device": spec.device,
        "ro.product.board": spec.platform,
        "ro.product.manufacturer": spec.manufacturer,
        "ro.product.brand": spec.brand,
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.product.cpu.abilist": "arm64-v8a",
        "ro.soc.model": spec.soc,
        "ro.soc.manufacturer": spec.soc_manufacturer,
        "ro.board.platform": spec.platform,
        "ro.hardware": "qcom" if spec.soc_manufacturer == "QTI" else spec.platform,
        "ro.serialno": spec.serialno,
        "ro.boot.serialno": spec.serialno,
        "ro.boot.bootid": boot_id,
        "ro.build.version.release": ANDROID_RELEASE,
        "ro.build.version.sdk": ANDROID_SDK,
        "ro.build.id": build,
        "ro.build.type": "user",
        "ro.build.tags": "release-keys",
        "ro.build.fingerprint": f"{spec.brand}/{product}/{spec.device}:{ANDROID_RELEASE}/{build}/1:user/release-keys",
        "ro.debuggable": "0",
        "ro.secure": "1",
        "ro.htpfarm.virtual": "1",
        "persist.sys.timezone": "UTC",
        "sys.boot_completed": "0",
    }


def lay_out(root: Path, spec: PhoneSpec) -> None:
    """Creates or renews the tree of a phone below `root`, and leaves `data` as it is."""
    for folder in (
        "data/local/tmp",
        "data/misc/logd",
        "data/media/0",
        "data/system",
        "system/bin",
        STATE,
        "sys/devices/system",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder in (PROPERTIES, str(Path(BOOT_ID).parent)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "data/local/tmp").chmod(0o771)
    _control_pipe(root / CONTROL)
    _programs(root / "system/bin")
    (root / LOG).touch()
    write_atomically(root / "system/build.prop", "".join(f"{k}={v}\n" for k, v in properties(spec, "").items()))
    if not (root / "sys/class/thermal").exists():
        write_state(root, PhoneState())


def _control_pipe(path: Path) -> None:
    if not path.is_fifo():
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)


def _programs(folder: Path) -> None:
    for source in sorted(SCRIPTS.glob("*.sh")):
        if source.stem != "accept":
            write_atomically(folder / source.stem, source.read_text(), mode=0o755)
    for name in _ACCEPTED:
        write_atomically(folder / name, (SCRIPTS / "accept.sh").read_text(), mode=0o755)
    for name in ("sh", *_HOST_TOOLS):
        place, host = folder / name, shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if host and not place.exists() and not place.is_symlink():
            place.symlink_to(host)


def write_runner(root: Path, spec: PhoneSpec, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Writes `/system/bin/htpfarm-runner`: the runner's environment, then `argv` with the caller's arguments appended.

    The environment overrides the caller's on purpose: a caller sets LD_LIBRARY_PATH to where the libraries for a real
    phone lie, and those do not load here.
    """
    lines = ["#!/bin/sh", "# Runs the harness's own runner as if it were a program of the phone."]
    settings = {**env, "HTPFARM_PHONE_SOC": spec.soc}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(settings.items())]
    lines.append(f'exec {shlex.join(argv)} "$@"')
    write_atomically(root / RUNNER.lstrip("/"), "\n".join(lines) + "\n", mode=0o755)


def prepare_boot(root: Path, spec: PhoneSpec) -> str:
    """Gives the phone a new boot id and fresh properties, as every boot does; returns the id."""
    boot_id = str(uuid.uuid4())
    (root / BOOT_ID).unlink(missing_ok=True)  # a new file: the old one may still be bound in the last boot's view
    (root / BOOT_ID).write_text(boot_id + "\n")
    folder = root / PROPERTIES
    for old in folder.iterdir():
        old.unlink()
    for key, value in properties(spec, boot_id).items():
        (folder / key).write_text(value + "\n")
    write_atomically(root / STATE / "boot_epoch", f"{int(time.time())}\n")
    append_log(root, "I", "boot", f"boot {boot_id}")
    return boot_id


def complete_boot(root: Path) -> None:
    """`sys.boot_completed` becomes 1."""
    write_atomically(root / PROPERTIES / "sys.boot_completed", "1\n")


def append_log(root: Path, priority: str, tag: str, message: str) -> None:
    """Adds a line to what `logcat` shows."""
    now = time.time()
    stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
    with (root / LOG).open("a") as file:
        file.write(f"{stamp} {1:5d} {1:5d} {priority} {tag}: {message}\n")
