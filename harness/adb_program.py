"""The adb that the rack and the farm run: `$ADBUTILS_ADB_PATH`, one on the path, or the one adbutils carries."""

from __future__ import annotations

import shutil

from harness.errors import ConfigError


def adb_path() -> str:
    """Path of a runnable adb.

    Raises:
        ConfigError: there is none.
    """
    import adbutils  # not needed to import this module

    try:
        path = str(adbutils.adb_path())
    except adbutils.AdbError as error:
        path, why = "", str(error)
    else:
        why = f"{path} cannot be run"
    if found := shutil.which(path):
        return found
    raise ConfigError(
        f"no adb: {why}",
        where="adb",
        remedy="pip install --force-reinstall adbutils (it carries one), or correct ADBUTILS_ADB_PATH",
    )
