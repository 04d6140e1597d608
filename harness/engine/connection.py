"""The way to an engine: its address, TLS, and what a driver asks of its scheduler, each with a time limit."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, InfraError, error_from_data

TLS_ENVIRONMENT = "HTPFARM_ENGINE_TLS"
DEFAULT_PORT = 8786
CONNECT_S, ASK_S = 30.0, 30.0
FILES = ("ca.pem", "cert.pem", "key.pem")


def need_distributed() -> None:
    """Makes sure that Dask is there, and quiet: what it has to say of lost hosts is said in our words.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the engine needs Dask, which is not installed ({error})",
            where="--engine",
            remedy='pip install -c constraints.txt -e ".[engine]"',
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def tls_folder(named: Path | None) -> Path | None:
    """The folder with the certificates: the one named, else `$HTPFARM_ENGINE_TLS`; None: no TLS.

    Raises:
        ConfigError: a file is missing in it.
    """
    folder = named or (Path(os.environ[TLS_ENVIRONMENT]) if os.environ.get(TLS_ENVIRONMENT) else None)
    if folder is None:
        return None
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ConfigError(
            f"no {', '.join(missing)} in the folder of certificates",
            where=str(folder),
            remedy="docs/engine.md says how to make them",
        )
    return folder.absolute()


def engine_address(text: str, tls: Path | None) -> str:
    """`host:port`, with or without `tcp://` or `tls://`, as the engine's address. Pure.

    Raises:
        ConfigError: it is no address, or does not go with the certificates.
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = ("tls" if tls else "tcp"), text
    host, _, port = rest.rpartition(":")
    if scheme not in ("tcp", "tls") or not host or not port.isdigit():
        raise ConfigError(
            f"{text!r} is no address of an engine", where="--engine", remedy="give HOST:PORT, as 127.0.0.1:8786"
        )
    if scheme == "tls" and tls is None:
        raise ConfigError(
            "a tls:// engine needs certificates", where=text, remedy=f"give their folder, or set {TLS_ENVIRONMENT}"
        )
    if scheme == "tcp" and tls is not None:
        raise ConfigError(
            "certificates were given for an address without TLS",
            where=text,
            remedy=f"write tls://{rest}, or leave out the folder and {TLS_ENVIRONMENT}",
        )
    return f"{scheme}://{rest}"


def security(tls: Path | None) -> Any:
    """Dask's `Security` for all links of a process; None without TLS."""
    if tls is None:
        return None
    from distributed import Security

    own = {f"tls_{role}_{part}": str(tls / f"{part}.pem") for role in _ROLES for part in ("cert", "key")}
    return Security(tls_ca_file=str(tls / "ca.pem"), require_encryption=True, **own)


_ROLES = ("client", "scheduler", "worker")


@dataclass(frozen=True)
class Member:
    """A worker as the scheduler knows it: what it offers, and what it says of its phones' state."""

    resources: Mapping[str, float]
    state: Mapping[str, Any] = field(default_factory=dict)


class Connection:
    """A client of an engine. Whatever does not answer in time is an InfraError."""

    def __init__(self, address: str, tls: Path | None = None) -> None:
        """
        Raises:
            ConfigError: Dask is missing, the address or the certificates are no good.
            InfraError: no engine answers there.
        """
        need_distributed()
        from distributed import Client

        self.tls = tls_folder(tls)
        self.address = engine_address(address, self.tls)
        try:
            self._client = Client(
                self.address,
                timeout=CONNECT_S,
                name="htpfarm",
                security=security(self.tls),
                set_as_default=False,
                direct_to_workers=False,
            )
        except Exception as error:
            raise InfraError(
                f"no engine answers within {CONNECT_S:.0f} s ({type(error).__name__})",
                where=self.address,
                remedy="start it: `htpfarm engine serve`; with TLS on one side, give certificates on both",
                evidence=str(error)[:500],
            ) from error

    def close(self) -> None:
        """Ends the connection; what was submitted and has not ended is cancelled."""
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def members(self) -> dict[str, Member]:
        """Address → each worker there is.

        Raises:
            InfraError: the scheduler does not answer.
        """
        said = self._sync("list its hosts", self._client.scheduler.identity, ASK_S, n_workers=-1)
        return {
            address: Member(one.get("resources") or {}, (one.get("metrics") or {}).get("htpfarm") or {})
            for address, one in said["workers"].items()
        }

    def ask(self, address: str, function: Callable[..., Any], *arguments: Any, limit_s: float = ASK_S) -> Any:
        """What a function of `harness.engine.host` answers on one host; outside of its tasks, so at once.

        Raises:
            InfraError: the host does not answer.
            HarnessError: what it answers with.
        """
        # Client.run has no limit of its own; its coroutine under Client.sync has.
        said = self._sync(
            f"reach {address}",
            self._client._run,
            limit_s,
            function,
            *arguments,
            workers=[address],
            on_error="return",
        )
        if address not in said:
            raise self._silent(f"reach {address}", KeyError(address))
        return _answer(said[address], f"{self.address}: {address}")

    def listen(self, topic: str, handler: Callable[[Any], None]) -> None:
        """Has each message of a topic handed to `handler`, in a thread of the client's."""

        def handle(event: tuple[float, Any]) -> None:
            handler(event[1])

        self._client.subscribe_topic(topic, handle)

    def unlisten(self, topic: str) -> None:
        """Ends `listen`."""
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(topic)

    def submit(
        self, function: Callable[..., Any], *arguments: Any, worker: str, resources: Mapping[str, float], key: str
    ) -> Any:
        """Dask's future of a task on one worker; it runs once, when the resources are free there."""
        return self._client.submit(
            function,
            *arguments,
            workers=[worker],
            allow_other_workers=False,
            resources=dict(resources),
            key=key,
            pure=False,
            retries=0,
        )

    def _sync(self, what: str, function: Callable[..., Any], limit_s: float, *arguments: Any, **named: Any) -> Any:
        if self._client.status != "running":  # it has lost the scheduler: asking would wait for one to come back
            raise self._silent(what, ConnectionError(f"the connection is {self._client.status}"))
        try:
            return self._client.sync(function, *arguments, callback_timeout=limit_s, **named)
        except Exception as error:
            raise self._silent(what, error) from error

    def _silent(self, what: str, error: Exception) -> InfraError:
        return InfraError(
            f"the engine could not {what} ({type(error).__name__})",
            where=self.address,
            remedy="is `htpfarm engine serve` still up, and the host? see `htpfarm engine ls`",
            evidence=str(error)[:500],
        )


def _answer(said: Any, where: str) -> Any:
    if isinstance(said, BaseException):
        raise InfraError(f"the host failed: {type(said).__name__}: {said}", where=where) from said
    if isinstance(said, dict) and "error" in said:
        raise error_from_data(said["error"])
    return said["value"]
