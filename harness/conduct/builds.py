"""The builds of one run: a thread of the run's first process builds; every process of the run can wait for a result.

The meeting place is `builds/<key>.json` in the run's folder: processes of pytest-xdist share nothing else, and an
interrupted run can still be read.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from harness.build.builder import Progress, Request, Result
from harness.build.cache import Artifact
from harness.build.events import Event
from harness.errors import BuildError, HarnessError, InfraError, error_from_data
from harness.files import write_atomically
from harness.results.records import ArtifactRecord, Record

WAIT_S = 4 * 3600.0


def build_file(folder: Path, key: str) -> Path:
    """Where a run says how the build of an artifact ended."""
    return folder / "builds" / f"{key}.json"


class Builds(Protocol):
    """What builds: `Builder` on this computer, `harness.engine.builds.EngineBuilder` on others."""

    def build(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[Result]:
        """See `Builder`."""

    def stop(self) -> None:
        """See `Builder`."""


class BuildService:
    """Builds in the background of a run."""

    def __init__(
        self,
        builder: Builds,
        requests: Sequence[Request],
        folder: Path,
        record: Callable[[Record], None],
        say: Callable[[str, str], None],
        after: BuildService | None = None,
    ) -> None:
        """
        Args:
            after: a service whose builds end before this one's begin.
        """
        self._builder, self._requests, self._folder = builder, requests, folder
        self._record, self._say, self._after = record, say, after
        self._thread = threading.Thread(target=self._run, name="htpfarm-builds", daemon=True)

    def start(self) -> None:
        """Starts building."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the workers that still run, and waits for them."""
        self._builder.stop()
        self._thread.join(timeout=30)

    def wait(self) -> None:
        """Waits until every build has ended."""
        self._thread.join()

    def _run(self) -> None:
        if self._after is not None:
            self._after.wait()
        try:
            for result in self._builder.build(self._requests, lambda name, e: self._say("build", words(name, e))):
                self._settle(result)
        except HarnessError as error:
            self._fail_rest(error)
        except Exception as error:
            # A thread's exception has no one to go to, and cells wait for an answer.
            self._fail_rest(BuildError(f"the build stopped: {error!r}"))

    def _fail_rest(self, error: HarnessError) -> None:
        for request in self._requests:
            if not build_file(self._folder, request.artifact.key).exists():
                self._write(request.artifact.key, error)

    def _settle(self, result: Result) -> None:
        artifact = result.request.artifact
        if result.error is None:
            manifest = artifact.manifest()
            stages, peak = manifest.get("stages_s", {}), manifest.get("peak_mb")
            for request in self._requests:
                if request.artifact.key == artifact.key:
                    self._record(
                        ArtifactRecord(
                            request.cell.id,
                            artifact.key,
                            str(artifact.pte),
                            artifact.pte.stat().st_size,
                            result.reused,
                            result.seconds,
                            stages if isinstance(stages, dict) else {},
                            peak if isinstance(peak, float) else None,
                        )
                    )
        self._write(artifact.key, result.error)

    def _write(self, key: str, error: HarnessError | None) -> None:
        path = build_file(self._folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        said = error.to_data() if error is not None else None
        write_atomically(path, json.dumps(said))


def words(name: str, event: Event) -> str:
    """A worker's event as a line of progress."""
    return {
        "begin": f"{name}: {event.name} …",
        "stage": f"{name}: {event.name} took {event.seconds:.0f} s",
        "done": f"{event.name} lowered in {event.seconds:.0f} s" + (f": {event.detail}" if event.detail else ""),
        "failed": f"{event.name} FAILED",
    }[event.kind]


def wait_for_artifact(folder: Path, artifact: Artifact, timeout_s: float = WAIT_S) -> None:
    """Waits until the run's builder has made an artifact; callable from any process of the run.

    Raises:
        HarnessError: of the class the build failed with.
        InfraError: the builder said nothing in time.
    """
    path = build_file(folder, artifact.key)
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise InfraError(f"no build of {artifact.folder.name} ended within {timeout_s:.0f} s", where=str(path))
        time.sleep(0.2)
    said = json.loads(path.read_text(encoding="utf-8"))
    if said is not None:
        raise error_from_data(said)
