"""A subject of a comparison: a cluster that we run, or an address that somebody else serves.

Owns both ends of a cluster that we run. `python -m penstock_supervisor.compare.subject` runs one
`Config` as `penstock run -q` does. It gets the configuration as one line of JSON on its standard
input, and writes one line when it serves, or that it cannot. It stops when its standard input is
closed. So it does not outlive the measuring side, even if that is killed. `RunningSubject` is the
measuring side: it starts the process, finds out the roles of its processes, and stops it.

The process has a session of its own, so that Ctrl-C in the terminal does not reach it: the
measuring side stops it.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from prometheus_client.parser import text_string_to_metric_families

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor import logging_setup
from penstock_supervisor.compare import stdin_pipe
from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.variants import Variant
from penstock_supervisor.config.environment import inherited_environment
from penstock_supervisor.config.loader import Config
from penstock_supervisor.errors import StartError

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.subject")
_START_SLACK_S: Final = 15.0
"""To start, in addition to what the service allows its workers."""
_STOP_S: Final = 5.0
"""To stop: it has no clients any more."""
_MAX_STDERR: Final = 4096
"""Last bytes of its stderr that are kept."""
_MAX_LINE: Final = 1 << 20
_REQUEST_S: Final = 10.0
_POLL_S: Final = 0.05

Roles = Mapping[str, tuple[int, ...]]
"""Processes by role."""


class SubjectError(Exception):
    """The subject cannot be measured. One line for people."""


class StartedSubject(Protocol):
    """A subject that we start and stop. `start` once, then `stop` in any case."""

    name: str
    address: str
    """Known when it has started."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def signal(self, number: signal.Signals) -> None: ...

    async def roles(self) -> Roles: ...

    async def split(self) -> tuple[str, dict[str, int]]: ...

    async def outgoing_connections(self, roles: Roles) -> int: ...


class RunningSubject:
    """A cluster that we run. Call `start` once, then `stop` in any case."""

    def __init__(self, variant: Variant, *, verbose: bool = False) -> None:
        self.name = variant.name
        self.service = variant.service
        self.address = ""
        self._config = variant.config
        self._verbose = verbose
        self._admin = Address()
        self._transport: asyncio.SubprocessTransport | None = None
        self._pipes: _Pipes | None = None

    async def start(self) -> None:
        """Return when every worker is in rotation. SubjectError."""
        loop = asyncio.get_running_loop()
        self._transport, self._pipes = await loop.subprocess_exec(
            lambda: _Pipes(loop, verbose=self._verbose),
            *_ARGV,
            *(("-v",) if self._verbose else ()),
            env=inherited_environment(),
            start_new_session=True,
        )
        stdin = self._transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(self._config.model_dump_json().encode() + b"\n")
        try:
            async with asyncio.timeout(self.service.timeouts.start + _START_SLACK_S):
                report = await self._pipes.report
                if "failed" in report:
                    raise SubjectError(report["failed"])
                self.address, self._admin = report["listening"], parse_address(report["admin"])
                while True:
                    if all_up(await self.workers()):
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise SubjectError(f"not ready in time{self._last_line()}") from None

    async def stop(self) -> None:
        """Return when no process of it is left; kill it if need be."""
        if self._transport is None or self._pipes is None:
            return
        ended = self._pipes.ended
        try:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                self.signal(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):
                        await asyncio.shield(ended)
                        return
        finally:
            # Its guardian, and their death signals, end its other processes.
            self.signal(signal.SIGKILL)
            self._transport.close()

    def signal(self, number: signal.Signals) -> None:
        """Signal its supervisor. No effect if it has ended."""
        if self._transport is not None and self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                self._transport.send_signal(number)

    async def workers(self) -> list[dict[str, Any]]:
        """The workers' rows of /status, by slot. SubjectError: it is gone."""
        status = json.loads(await self._get("/status"))
        rows: list[dict[str, Any]] = status["services"][self.service.name]["workers"]
        return rows

    async def roles(self) -> Roles:
        """All of its processes, and those that its workers have started."""
        status = json.loads(await self._get("/status"))
        rows = status["services"][self.service.name]["workers"]
        proxy = {pid for row in status["proxies"] for pid in _tree(row.get("pid"))}
        workers = {pid for row in rows for pid in _tree(row.get("pid"))}
        assert self._transport is not None
        rest = set(resource_usage.tree(self._transport.get_pid())) - proxy - workers
        # Not every scheme has a proxy, and upstreams are not processes of ours.
        roles = {"supervisor": rest, "proxy": proxy, "workers": workers}
        return {role: tuple(sorted(pids)) for role, pids in roles.items() if pids}

    async def split(self) -> tuple[str, dict[str, int]]:
        """What is counted ("requests" or "connections"), and the counts so far by slot."""
        http = self.service.scheme == "ports" and self.service.mode == "http"
        name = "penstock_requests_total" if http else "penstock_worker_connections_total"
        page = (await self._get("/metrics")).decode()
        counts: dict[str, int] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                slot = sample.labels.get("slot", "")
                if sample.name == name and slot.isdigit():
                    counts[slot] = counts.get(slot, 0) + int(sample.value)
        return "requests" if http else "connections", counts

    async def outgoing_connections(self, _: Roles) -> int:
        """Connections of its proxy to its workers; each uses an ephemeral port."""
        addresses = [row.get("address") for row in await self.workers()]
        ports = {parse_address(address).port for address in addresses if address} - {0}
        return resource_usage.connections_to(ports) if self.service.scheme == "ports" else 0

    async def _get(self, path: str) -> bytes:
        """A page of its admin port."""
        try:
            async with asyncio.timeout(_REQUEST_S):
                reader, writer = await asyncio.open_connection(self._admin.host, self._admin.port)
                try:
                    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    answer = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            raise SubjectError(f"its supervisor does not answer{self._last_line()}") from None
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
            raise SubjectError(f"its supervisor does not say {path}")
        return body

    def _last_line(self) -> str:
        line = "" if self._pipes is None else self._pipes.last_line()
        return f": {line}" if line else ""


def all_up(rows: list[dict[str, Any]]) -> bool:
    """Is every worker ready and up? Upstreams have a health and no state."""
    return all(row.get("health") == "up" and row.get("state", "ready") == "ready" for row in rows)


class ExternalSubject:
    """An address that somebody else serves, and its processes if they are on this machine."""

    def __init__(self, address: str) -> None:
        self.name = self.address = address
        self._port = parse_address(address).port

    async def roles(self) -> Roles:
        """The processes that listen there. Empty if they are elsewhere, or may not be read."""
        if not self._port:
            return {}
        roots = await asyncio.to_thread(resource_usage.listening_processes, self._port)
        pids = {pid for root in roots for pid in resource_usage.tree(root)}
        return {"server": tuple(sorted(pids))} if pids else {}

    async def split(self) -> tuple[str, dict[str, int]]:
        """Not known."""
        return "connections", {}

    async def outgoing_connections(self, roles: Roles) -> int:
        pids = roles.get("server", ())
        return await asyncio.to_thread(resource_usage.outgoing_connections, pids, self._port)


def _tree(pid: int | None) -> tuple[int, ...]:
    return () if pid is None else resource_usage.tree(pid)


class _Pipes(asyncio.SubprocessProtocol):
    """Reads the process' output: one line of stdout, and the end of its stderr."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, verbose: bool) -> None:
        self.report: asyncio.Future[dict[str, Any]] = loop.create_future()
        """The line of stdout; or {"failed": why} if the process ended without one."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._verbose = verbose
        self._stdout = b""
        self._stderr = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._stderr = (self._stderr + data)[-_MAX_STDERR:]
            if self._verbose:
                sys.stderr.write(data.decode(errors="replace"))
            return
        self._stdout = (self._stdout + data)[:_MAX_LINE]
        if b"\n" in self._stdout and not self.report.done():
            self.report.set_result(json.loads(self._stdout))

    def process_exited(self) -> None:
        if not self.report.done():
            self.report.set_result({"failed": f"its supervisor ended: {self.last_line()}"})
        if not self.ended.done():
            self.ended.set_result(None)

    def last_line(self) -> str:
        """The last line of stderr."""
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


# The process itself.


async def _run(config: Config) -> int:
    # Imported late: the measuring side does not need it.
    from penstock_supervisor.supervisor import Supervisor

    def on_started(supervisor: Supervisor) -> None:
        (listening,) = supervisor.listening.values()
        _report({"listening": listening, "admin": supervisor.admin})

    loop = asyncio.get_running_loop()
    devnull = os.open(os.devnull, os.O_WRONLY)
    supervisor = Supervisor(
        config, environment=inherited_environment(), on_started=on_started, stdout=devnull
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.roll)

    def on_stdin_closed() -> None:
        loop.remove_reader(stdin_pipe.FD)
        supervisor.stop()
        loop.call_later(_STOP_S, supervisor.stop)

    loop.add_reader(stdin_pipe.FD, on_stdin_closed)
    try:
        return await supervisor.run()
    except StartError as error:
        _report({"failed": str(error)})
        return 1
    finally:
        os.close(devnull)


def _unwatched(config: Config) -> Config:
    """With new workers that take over as soon as they are in the rotation. All are replaced under
    load in a few seconds, and what is measured is what that costs."""
    services = [
        one.model_copy(update={"rollout": one.rollout.model_copy(update={"watch": 0.0})})
        for one in config.services
    ]
    return config.model_copy(update={"services": tuple(services)})


def _report(message: Mapping[str, str]) -> None:
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _main() -> int:
    line = stdin_pipe.read_line()
    if line is None:
        return 1
    logging_setup.set_up(0 if "-v" in sys.argv else -1)
    return asyncio.run(_run(_unwatched(Config.model_validate_json(line))))


if __name__ == "__main__":
    sys.exit(_main())
