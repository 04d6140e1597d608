"""Holds one phone's namespaces: a program that builds the phone's root, becomes its process 1, and ends with the rack.

    python -I -S holder.py SPEC

SPEC is JSON: `root` (the phone's tree on the host), `expose` (host paths that must be readable although they lie under
a folder the phone has for itself, such as /tmp). It prints `ready PID` (the host's number for the phone's process 1) or
`failed: why`, and ends when its stdin does; with process 1 the kernel ends everything else in the phone.

It needs no privileges where unprivileged user namespaces are allowed (see user_namespaces(7), pid_namespaces(7),
pivot_root(2), mount_setattr(2): Linux 5.12). Only the standard library: it starts on every boot of a phone.
"""

# pathlib would cost a third of the start-up time
# ruff: noqa: S108, PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY = 1
SYS_MOUNT_SETATTR = 442  # the same number on x86-64 and arm64

OWN = frozenset(
    {"proc", "sys", "dev", "tmp", "data", "system", "sdcard", "vendor", "storage", "lost+found", "old_root"}
)
"""Folders of the root that a phone has for itself; every other one is the host's, read-only."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {kind or 'bind'} {source} on {target}",
    )


def _read_only(target: str, *, recursive: bool = True) -> None:
    attributes = struct.pack("<4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_long(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_ulong(AT_RECURSIVE if recursive else 0),
        ctypes.c_char_p(attributes),
        ctypes.c_ulong(len(attributes)),
    )
    _check(result, f"mount_setattr {target} read-only")


def _bind(source: str, target: str, *, writable: bool = False, recursive: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))
    if not writable:
        _read_only(target)


def _expose(source: str, target: str) -> None:
    """Without what is mounted below it (that may be this very root), unless the kernel insists on it."""
    try:
        _bind(source, target, recursive=False)
    except OSError:
        _bind(source, target)


def _host_folders(base: str) -> None:
    """The host's top folders, read-only. The one that holds `base` comes first, before there are mounts below it to
    copy.
    """
    for name in sorted(os.listdir("/"), key=lambda name: (not base.startswith(f"/{name}/"), name)):
        source, target = f"/{name}", f"{base}/{name}"
        if name in OWN:
            continue
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            try:
                _bind(source, target)
            except OSError as error:
                print(f"not bound: {error}", file=sys.stderr)


def _devices(root: str, base: str) -> None:
    dev = f"{base}/dev"
    os.mkdir(dev)
    _mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            _bind(f"/dev/{name}", f"{dev}/{name}", writable=True)
    if os.path.isdir("/dev/pts"):
        _bind("/dev/pts", f"{dev}/pts", writable=True)
    for name, link in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(link, f"{dev}/{name}")
    for name in ("__properties__", "htpfarm-control"):
        _bind(f"{root}/dev/{name}", f"{dev}/{name}", writable=True)
    os.mkdir(f"{dev}/shm")
    # Its own mount, since the one around it is closed for writing below.
    _mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _read_only(dev, recursive=False)


def build_root(root: str, expose: list[str]) -> None:
    """Makes the phone's root and moves into it. Raises OSError, naming the step, where the kernel refuses one."""
    base = f"{root}/.root"
    os.makedirs(base, exist_ok=True)
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    _host_folders(base)
    os.mkdir(f"{base}/tmp")
    _mount("tmpfs", f"{base}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _bind(f"{root}/data", f"{base}/data", writable=True)
    _bind(f"{root}/system", f"{base}/system")
    _bind(f"{root}/sys", f"{base}/sys")
    if os.path.isdir("/sys/devices/system"):  # libraries count processors there
        _bind("/sys/devices/system", f"{base}/sys/devices/system")
    os.symlink("/data/media/0", f"{base}/sdcard")
    os.makedirs(f"{base}/vendor/lib64")
    _devices(root, base)
    os.mkdir(f"{base}/proc")
    _mount("proc", f"{base}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    boot_id = "proc/sys/kernel/random/boot_id"
    _mount(f"{root}/{boot_id}", f"{base}/{boot_id}", "", MS_BIND)
    # A folder before what lies in it: making the inner one's place would make the outer one exist, empty.
    for path in sorted(expose, key=len):
        if os.path.exists(path) and not os.path.exists(base + path):
            _expose(path, base + path)
    _read_only(base, recursive=False)
    os.chdir(base)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _become_init(root: str, expose: list[str], report: int) -> None:
    """Process 1: builds the root, says so, then collects the dead until stdin ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        build_root(root, expose)
    except OSError as error:
        os.write(report, f"failed: {error.strerror}".encode())
        os._exit(1)
    signal.signal(signal.SIGCHLD, _collect)
    os.write(report, b"ok")
    os.close(report)
    while os.read(0, 4096):
        pass
    os._exit(0)


def _collect(_signal: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(arguments: list[str]) -> int:
    """Makes the namespaces, forks process 1 into them and stays as its parent outside."""
    spec = json.loads(arguments[0])
    uid, gid = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare user, mount and pid namespaces")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        print(f"failed: {error.strerror}", flush=True)
        return 1
    # Gaining a namespace made this process undumpable, which would close /proc/PID/ns to its own user.
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    receive, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _become_init(spec["root"], spec["expose"], report)
    os.close(report)
    said = os.read(receive, 4096).decode()
    print(f"ready {child}" if said == "ok" else said or "failed: process 1 died", flush=True)
    os.waitpid(child, 0)
    return 0 if said == "ok" else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
