"""A phone made ready for a measurement, and put back afterwards: awake, its screen on and unlocked, at a fixed speed.

What is asked for are Android's own switches: `svc power stayon` (PowerManager: no sleep while it has power),
KEYCODE_WAKEUP, `wm dismiss-keyguard` (works where no code is set), battery saver off, and
`cmd power set-fixed-performance-mode-enabled` (Android 11 and later: a speed the phone can hold, where its maker
supports it). The HTP's own performance mode is compiled into the .pte.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harness.errors import InfraError
from harness.farm.connect import PhoneLink

_STAY_ON = "settings get global stay_on_while_plugged_in"
_SAVER = "settings get global low_power"
_READY = (
    "svc power stayon true && input keyevent KEYCODE_WAKEUP && wm dismiss-keyguard && settings put global low_power 0; "
    "cmd power set-fixed-performance-mode-enabled true >/dev/null 2>&1; true"
)


@contextmanager
def kept_awake(link: PhoneLink) -> Iterator[None]:
    """Keeps a phone awake and at a steady speed inside the block.

    Raises:
        InfraError: it does not answer. At the end of the block that is not said: what happened there counts.
    """
    said = link.must(f"{_STAY_ON}; {_SAVER}; {_READY}").stdout.split()
    stay_on, saver = (word if word.isdigit() else "0" for word in (*said[:2], "0", "0")[:2])
    try:
        yield
    finally:
        with suppress(InfraError):
            link.shell(
                f"settings put global stay_on_while_plugged_in {stay_on}; settings put global low_power {saver}; "
                "cmd power set-fixed-performance-mode-enabled false >/dev/null 2>&1; true"
            )
