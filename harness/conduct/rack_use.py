"""A run's use of the virtual rack: started when needed, shared with other runs, ended by the last one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from harness.farm.lease import shared_folder
from harness.inventory import Inventory
from harness.rack.manage import RackState, default_state_dir, down, find, is_anothers, status, up
from harness.rack.phone import tell
from harness.runtime.cores import CORE_LOCKS, make_core_locks
from harness.soc import PhoneKind
from harness.toolchain.environment import Toolchain


def start_rack(
    phones: Sequence[tuple[str, PhoneKind]], toolchain: Toolchain, state_dir: Path, expose: Sequence[Path] = ()
) -> RackState:
    """Starts a rack, or finds it, whose runner has the toolchain's environment and keeps to one core a phone.

    `expose` are host paths that runners need although they lie under /tmp, which phones have for themselves.
    """
    locks = make_core_locks(shared_folder())
    runner_env = {**toolchain.environment({}), CORE_LOCKS: str(locks)}
    return up(phones, state_dir=state_dir, runner_env=runner_env, expose=[locks, *expose])


def arm_faults(inventory: Inventory, state: RackState) -> None:
    """Arms the phones of a rack that has just started with the faults of devices.yaml."""
    roots = {running.name: Path(running.root) for running in state.phones}
    for phone in inventory.phones:
        if phone.faults and phone.name in roots:
            tell(roots[phone.name], "fault clear")
            for spec in phone.faults:
                tell(roots[phone.name], f"fault {spec.to_json()}")


class RackUse:
    """Holds a shared lock while a run uses the rack; the kernel frees it if the run dies.

    A rack that was up before the run, as by `htpfarm rack up`, stays up after it; another user's is used as it is.
    """

    def __init__(
        self,
        inventory: Inventory,
        toolchain: Toolchain,
        state_dir: Path | None = None,
        *,
        expose: Sequence[Path] = (),
    ) -> None:
        """
        Args:
            expose: as in `start_rack`; of no effect on a rack that is up.
        """
        self._state_dir = state_dir or default_state_dir()
        self._descriptor = -1
        self._started = False
        self.state: RackState | None = None
        phones = [(phone.name, phone.virtual) for phone in inventory.phones if phone.virtual is not None]
        if not phones:
            return
        if is_anothers(self._state_dir):
            self.state = find(phones, state_dir=self._state_dir)
            return
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._state_dir / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        self._started = status(self._state_dir) is None
        self.state = start_rack(phones, toolchain, self._state_dir, expose)
        if self._started:
            arm_faults(inventory, self.state)

    def close(self) -> None:
        """Ends the rack if this run started it and no other run uses it."""
        if self._descriptor < 0:
            return
        try:
            if self._started:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                down(self._state_dir)
        except BlockingIOError:
            pass
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
