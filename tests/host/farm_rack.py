"""What the farm's tests share: virtual phones behind a real adb server; scripts stand in for the runner alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from events import HANG_S

from harness.farm.connect import AdbServer, PhoneLink
from harness.farm.deploy import DeployReport, deploy
from harness.farm.payload import PayloadFile
from harness.farm.session import SessionSpec
from harness.rack import manage
from harness.soc import PHONE_KINDS

OBSERVER = (
    'PyTorchObserver {"prompt_tokens":10,"generated_tokens":30,"model_load_start_ms":100,"model_load_end_ms":350,'
    '"inference_start_ms":1000,"inference_end_ms":4100,"prompt_eval_end_ms":1100,"first_token_ms":1120,'
    '"model_execution_start_ms":0,"model_execution_end_ms":0,"SCALING_FACTOR_UNITS_PER_SECOND":1000}'
)
GOOD_RUNNER = f"""#!/bin/sh
echo "$@" > outputs.txt
echo 12.5 > inference_speed.txt
cat input.json >> outputs.txt 2>/dev/null
echo "ADSP $ADSP_LIBRARY_PATH" >&2
echo '{OBSERVER}'
"""
OWN = os.environ.setdefault("HTPFARM_TESTS_OWN", str(os.getpid()))
"""Marks what these tests and their programs start: phones without namespaces show the processes of all racks, those of
the tests beside them, too. Digits, so that `sleep 301.OWN` is told from others'.
"""
NAPS = f".{OWN}"
"""In the command line of every sleep."""
HANGING_RUNNER = f"""#!/bin/sh
sleep 301{NAPS} &
sleep 302{NAPS} &
echo started
wait
"""
"""It says that it has started once both of its children are there."""


@contextmanager
def running_rack(folder: Path, kinds: Mapping[str, str], *, plain: bool | None = None) -> Iterator[manage.RackState]:
    """A rack of its own, ended in any case. Its phones' own runner prints what it was given."""
    phones = [(name, PHONE_KINDS[kind]) for name, kind in kinds.items()]
    try:
        yield manage.up(
            phones, state_dir=folder, boot_delay=0.5, runner_argv=["/bin/sh", "-c", 'echo got "$@"', "sh"], plain=plain
        )
    finally:
        manage.down(folder)


def link_to(state: manage.RackState, name: str) -> PhoneLink:
    """The link to a running virtual phone."""
    (phone,) = (phone for phone in state.phones if phone.name == name)
    return AdbServer(state.adb_host, state.adb_port).link(phone.serial)


def deploy_runner(link: PhoneLink, folder: Path, text: str) -> DeployReport:
    """Deploys a script in place of the runner."""
    path = folder / "runner.sh"
    path.write_text(text)
    return deploy(link, [PayloadFile(path, "qnn_llama_runner", executable=True)])


def session(number: int, *flags: str, timeout_s: float = HANG_S, outputs: tuple[str, ...] = ()) -> SessionSpec:
    """A session of the deployed script."""
    return SessionSpec(f"test{OWN}", number, "qnn_llama_runner", flags, outputs=outputs, timeout_s=timeout_s)


def processes(link: PhoneLink, word: str) -> list[str]:
    """Command lines on the phone that hold `word`, the shell that asks left out."""
    found = link.must("ps -ef").stdout.splitlines()
    return [line for line in found if word in line and "ps -ef" not in line]
