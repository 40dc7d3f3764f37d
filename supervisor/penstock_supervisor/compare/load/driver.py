"""Makes load on an address, with generators in their own processes; and holds idle connections.

Owns the generators' processes. They begin together, and none is left running after an error, a
Ctrl-C or a cancelled task. Idle connections are held by this process itself, because they take
no CPU time.
"""

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from penstock_supervisor.compare.load.clients import (
    Client,
    Poller,
    raise_fd_limit,
    request,
)
from penstock_supervisor.compare.load.connector import Connector
from penstock_supervisor.compare.load.job import READY, Job, LoadReport, merge, split
from penstock_supervisor.config.environment import inherited_environment

__all__ = ["HeldConnections", "Job", "LoadReport", "drive"]

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.load.generator")
_SLACK_S: Final = 30.0
"""To start, to connect, and to wait for the last responses."""
_MAX_OPENING: Final = 64
"""Connections that are opened at the same time: fewer than the shortest usual backlog."""
_EXPIRE_S: Final = 0.25
"""Between two checks for requests that take too long."""


async def drive(job: Job, processes: int = 1) -> LoadReport:
    """Make load and wait for its end. OSError: a generator failed."""
    parts = split(job, processes)
    running: list[asyncio.subprocess.Process] = []
    try:
        async with asyncio.timeout(job.seconds + _SLACK_S):
            for _ in parts:
                running.append(await _start())  # noqa: PERF401 — if one fails, the others are killed
            for process in running:
                await _ready(process)
            for process, part in zip(running, parts, strict=True):
                assert process.stdin is not None
                process.stdin.write(part.model_dump_json().encode() + b"\n")
            return merge([await _report(process) for process in running])
    finally:
        for process in running:
            _kill(process)
        for process in running:
            await process.wait()


async def _start() -> asyncio.subprocess.Process:
    # In a session of its own, so that the terminal's Ctrl-C does not reach it.
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *_ARGV, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24,
        env=inherited_environment(), start_new_session=True,
    )  # fmt: skip


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    if await process.stdout.readline() != READY:
        raise await _failed(process)


async def _report(process: asyncio.subprocess.Process) -> LoadReport:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise await _failed(process)
    return LoadReport.model_validate_json(line)


async def _failed(process: asyncio.subprocess.Process) -> OSError:
    assert process.stderr is not None
    text = (await process.stderr.read(65536)).decode(errors="replace").strip()
    return OSError(f"the load generator: {text.splitlines()[-1] if text else 'said nothing'}")


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


class HeldConnections:
    """Connections that made one request each, and have been idle since its response."""

    def __init__(self, address: str, path: str = "/", host: str = "localhost") -> None:
        self._address = address
        self._request = request(host, path, keep=True)
        self._poller = Poller()
        self._clients: list[Client] = []
        self._opening: set[Client] = set()
        """Their first response has not come yet."""
        self._one_done = asyncio.Event()
        self._connector: Connector | None = None

    async def __aenter__(self) -> Self:
        raise_fd_limit()
        self._connector = await asyncio.to_thread(Connector, self._address)
        asyncio.get_running_loop().add_reader(self._poller.fileno(), self._ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._poller.fileno())
        for client in self._clients:
            client.close()
        self._poller.close()

    async def grow(self, more: int) -> int:
        """Open so many more, each with one request, and return how many are open in all.

        These are fewer if a process has no descriptors left, or if the subject does not answer.
        """
        loop = asyncio.get_running_loop()
        while more > 0 or self._opening:
            while more > 0 and len(self._opening) < _MAX_OPENING:
                more = more - 1 if self._open(loop.time()) else 0
            if self._opening:
                await self._wait(loop)
        self._clients = [client for client in self._clients if client.open]
        return len(self._clients)

    def _open(self, now: float) -> bool:
        assert self._connector is not None
        client = Client(
            self._poller, self._connector, self._request, keep=True, on_done=self._on_done
        )
        if client.send(now, now):
            return False
        self._clients.append(client)
        self._opening.add(client)
        return True

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until one has its response, or has failed, or takes too long."""
        self._one_done.clear()
        try:
            async with asyncio.timeout(_EXPIRE_S):
                await self._one_done.wait()
        except TimeoutError:
            for client in [one for one in self._opening if one.expire(loop.time())]:
                self._opening.discard(client)

    def _ready(self) -> None:
        self._poller.wait(0)

    def _on_done(self, client: Client, error: str) -> None:
        if error:
            client.close()
        self._opening.discard(client)
        self._one_done.set()
