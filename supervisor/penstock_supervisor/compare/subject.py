"""A cluster to be measured: a process that runs one `Config` as `penstock run -q` does.

Owns both ends. `python -m penstock_supervisor.compare.subject` gets the configuration on its
standard input, as one line of JSON, and answers with one line when it serves or cannot. The
same pipe is its lifeline: whoever measures may be killed, and then it ends and the subject
leaves by itself. `RunningSubject` is the measuring side: it starts the process, finds out which of
its processes do what, and stops it.

A session of its own keeps a Ctrl-C in the terminal from reaching it: what is being measured
ends when the measuring side says so.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor import logging_setup
from penstock_supervisor.compare import resource_usage
from penstock_supervisor.compare.variants import Variant
from penstock_supervisor.config.loader import Config, inherited_environment
from penstock_supervisor.errors import StartError

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.subject")
_SLACK_S: Final = 15.0
"""To start, beyond what the service allows its workers."""
_LEAVE_S: Final = 5.0
"""To finish: nobody is being served any more."""
_KEPT: Final = 4096
"""Bytes of its last words."""
_LINE: Final = 1 << 20
_ASK_S: Final = 10.0
_POLL_S: Final = 0.05

Roles = Mapping[str, tuple[int, ...]]
"""Processes by role."""


class SubjectError(Exception):
    """It cannot be measured. One line for people."""


class RunningSubject:
    """One subject that we run. `start` once, then `stop` in any case."""

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
            async with asyncio.timeout(self.service.timeouts.start + _SLACK_S):
                said = await self._pipes.said
                if "failed" in said:
                    raise SubjectError(said["failed"])
                self.address, self._admin = said["listening"], parse_address(said["admin"])
                while True:
                    if all_up(await self.workers()):
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise SubjectError(f"not ready in time{self._last_words()}") from None

    async def stop(self) -> None:
        """Return when nothing of it is left, whatever it takes."""
        if self._transport is None or self._pipes is None:
            return
        ended = self._pipes.ended
        try:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                self.signal(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_S):
                        await asyncio.shield(ended)
                        return
        finally:
            # Its own guardian and death signals take the rest of it along.
            self.signal(signal.SIGKILL)
            self._transport.close()

    def signal(self, number: signal.Signals) -> None:
        """Signal its supervisor. Nobody there is what a signal to one that ended finds."""
        if self._transport is not None and self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                self._transport.send_signal(number)

    async def workers(self) -> list[dict[str, Any]]:
        """The rows of /status, by slot. SubjectError when it is gone."""
        status = json.loads(await self._page("/status"))
        rows: list[dict[str, Any]] = status["services"][self.service.name]["workers"]
        return rows

    async def roles(self) -> Roles:
        """All of its processes, those that its workers started as well."""
        status = json.loads(await self._page("/status"))
        rows = status["services"][self.service.name]["workers"]
        proxy = {pid for row in status["proxies"] for pid in _tree(row.get("pid"))}
        workers = {pid for row in rows for pid in _tree(row.get("pid"))}
        assert self._transport is not None
        rest = set(resource_usage.tree(self._transport.get_pid())) - proxy - workers
        # Not everybody has a proxy, and upstreams are not processes of ours.
        roles = {"supervisor": rest, "proxy": proxy, "workers": workers}
        return {role: tuple(sorted(pids)) for role, pids in roles.items() if pids}

    async def split(self) -> tuple[str, dict[str, int]]:
        """What each worker had so far, by slot, and what is counted: requests or connections."""
        http = self.service.scheme == "ports" and self.service.mode == "http"
        name = "penstock_requests_total" if http else "penstock_worker_connections_total"
        page = (await self._page("/metrics")).decode()
        found: dict[str, int] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                slot = sample.labels.get("slot", "")
                if sample.name == name and slot.isdigit():
                    found[slot] = found.get(slot, 0) + int(sample.value)
        return "requests" if http else "connections", found

    async def outgoing(self, _: Roles) -> int:
        """Ephemeral ports that its proxy holds to reach its workers."""
        places = [row.get("address") for row in await self.workers()]
        ports = {parse_address(place).port for place in places if place} - {0}
        return resource_usage.outgoing(ports) if self.service.scheme == "ports" else 0

    async def _page(self, path: str) -> bytes:
        try:
            async with asyncio.timeout(_ASK_S):
                reader, writer = await asyncio.open_connection(self._admin.host, self._admin.port)
                try:
                    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    answer = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            raise SubjectError(f"its supervisor does not answer{self._last_words()}") from None
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
            raise SubjectError(f"its supervisor does not say {path}")
        return body

    def _last_words(self) -> str:
        words = "" if self._pipes is None else self._pipes.last_words()
        return f": {words}" if words else ""


def all_up(rows: list[dict[str, Any]]) -> bool:
    """Does every worker serve? Upstreams have a standing and no state."""
    return all(row.get("standing") == "up" and row.get("state", "up") == "up" for row in rows)


class Outside:
    """One subject that somebody else runs: an address, and perhaps its processes."""

    def __init__(self, address: str) -> None:
        self.name = self.address = address
        self._port = parse_address(address).port

    async def roles(self) -> Roles:
        """Who listens there, if it is on this machine and may be looked at."""
        roots = await asyncio.to_thread(resource_usage.listeners, self._port) if self._port else ()
        pids = {pid for root in roots for pid in resource_usage.tree(root)}
        return {"server": tuple(sorted(pids))} if pids else {}

    async def split(self) -> tuple[str, dict[str, int]]:
        """Nobody tells."""
        return "connections", {}

    async def outgoing(self, roles: Roles) -> int:
        pids = roles.get("server", ())
        return await asyncio.to_thread(resource_usage.outgoing_of, pids, self._port)


def _tree(pid: int | None) -> tuple[int, ...]:
    return () if pid is None else resource_usage.tree(pid)


class _Pipes(asyncio.SubprocessProtocol):
    """What the process says: one line on stdout, and the last of its stderr."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, verbose: bool) -> None:
        self.said: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._verbose = verbose
        self._line = b""
        self._tail = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._tail = (self._tail + data)[-_KEPT:]
            if self._verbose:
                sys.stderr.write(data.decode(errors="replace"))
            return
        self._line = (self._line + data)[:_LINE]
        if b"\n" in self._line and not self.said.done():
            self.said.set_result(json.loads(self._line))

    def process_exited(self) -> None:
        if not self.said.done():
            self.said.set_result({"failed": f"its supervisor ended: {self.last_words()}"})
        if not self.ended.done():
            self.ended.set_result(None)

    def last_words(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


# The other end.


async def _run(config: Config) -> int:
    # Late: the measuring side never needs it.
    from penstock_supervisor.supervisor import Supervisor

    def started(supervisor: Supervisor) -> None:
        (listening,) = supervisor.listening.values()
        _say({"listening": listening, "admin": supervisor.admin})

    loop = asyncio.get_running_loop()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    supervisor = Supervisor(
        config, environment=inherited_environment(), on_started=started, stdout=nowhere
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.roll)

    def lost() -> None:
        loop.remove_reader(0)
        supervisor.stop()
        loop.call_later(_LEAVE_S, supervisor.stop)

    loop.add_reader(0, lost)
    try:
        return await supervisor.run()
    except StartError as error:
        _say({"failed": str(error)})
        return 1
    finally:
        os.close(nowhere)


def _say(message: Mapping[str, str]) -> None:
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _main() -> int:
    # Unbuffered: what comes after the line is for the loop to see.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return 1
        line += piece
    logging_setup.set_up(0 if "-v" in sys.argv else -1)
    return asyncio.run(_run(Config.model_validate_json(line)))


if __name__ == "__main__":
    sys.exit(_main())
