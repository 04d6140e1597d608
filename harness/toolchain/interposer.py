"""Builds our `libQnnHtp.so` (interposer.c) with the system's C compiler. See that file for what it mends."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from harness.errors import ConfigError

SOURCE = Path(__file__).with_name("interposer.c")
COMPILERS = ("cc", "gcc", "clang")


def find_compiler() -> str:
    """Path of a C compiler: `$CC`, else cc, gcc or clang. Raises ConfigError where there is none."""
    explicit = os.environ.get("CC")
    for name in (explicit,) if explicit else COMPILERS:
        if found := shutil.which(name):
            return found
    raise ConfigError(
        f"no C compiler found ({'$CC=' + explicit if explicit else ', '.join(COMPILERS)})",
        where="interposer for libQnnHtp.so",
        remedy="install one (Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc) or set CC",
    )


def source_hash() -> str:
    """SHA-256 of the interposer's source: part of the toolchain's fingerprint."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def build_interposer(real_library: Path, output: Path) -> None:
    """Compiles the interposer for `real_library` into `output`.

    Raises:
        ConfigError: no compiler, or it refuses the source.
    """
    command = [
        find_compiler(),
        "-O2",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        f'-DREAL_LIBRARY="{real_library}"',
        # Found by path and by name, and never unloaded between the two.
        "-Wl,-soname,libQnnHtp.so",
        "-Wl,-z,nodelete",
        "-o",
        str(output),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"the C compiler refused the interposer (exit status {done.returncode})",
            where=" ".join(command),
            remedy="check that the compiler can build shared libraries for x86-64 Linux (libc headers installed?)",
            evidence=done.stderr,
        )
