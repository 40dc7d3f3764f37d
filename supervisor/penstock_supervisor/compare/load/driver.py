"""Makes load on an address: generators in processes of their own, and connections that are held.

Owns the generators' processes: they begin together, and whatever happens (an error, a Ctrl-C,
a cancelled task) none of them stays. Held connections are this process's own, since all that
is wanted of them is that they are there.
"""

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from penstock_supervisor.compare.load.clients import Client, Poll, Route, raise_descriptors, request
from penstock_supervisor.compare.load.job import READY, Job, Report, merge, split
from penstock_supervisor.config.loader import inherited_environment

__all__ = ["Holder", "Job", "Report", "drive"]

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.load.generator")
_SLACK_S: Final = 30.0
"""To start, to connect, and to wait for the last answers."""
_AT_ONCE: Final = 64
"""Connections that are opened at the same time: fewer than the shortest usual backlog."""
_SWEEP_S: Final = 0.25


async def drive(job: Job, processes: int = 1) -> Report:
    """Make load and wait for its end. OSError: a generator could not work."""
    parts = split(job, processes)
    running: list[asyncio.subprocess.Process] = []
    try:
        async with asyncio.timeout(job.seconds + _SLACK_S):
            for _ in parts:
                running.append(await _start())  # noqa: PERF401 — those before are to be ended
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
    # A session of its own keeps the terminal's Ctrl-C for those who end it.
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *_ARGV, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24,
        env=inherited_environment(), start_new_session=True,
    )  # fmt: skip


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    if await process.stdout.readline() != READY:
        raise await _failed(process)


async def _report(process: asyncio.subprocess.Process) -> Report:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise await _failed(process)
    return Report.model_validate_json(line)


async def _failed(process: asyncio.subprocess.Process) -> OSError:
    assert process.stderr is not None
    words = (await process.stderr.read(65536)).decode(errors="replace").strip()
    return OSError(f"the load generator: {words.splitlines()[-1] if words else 'said nothing'}")


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


class Holder:
    """Connections that asked once, were answered and idle from then on."""

    def __init__(self, address: str, path: str = "/", host: str = "localhost") -> None:
        self._address = address
        self._request = request(host, path, keep=True)
        self._poll = Poll()
        self._clients: list[Client] = []
        self._asking: set[Client] = set()
        self._moved = asyncio.Event()
        self._route: Route | None = None

    async def __aenter__(self) -> Self:
        raise_descriptors()
        self._route = await asyncio.to_thread(Route, self._address)
        asyncio.get_running_loop().add_reader(self._poll.fileno(), self._ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._poll.fileno())
        for client in self._clients:
            client.close()
        self._poll.close()

    async def grow(self, more: int) -> int:
        """Open that many more, each with one answer, and return how many are open in all.

        Fewer than asked for: somebody has no descriptors left, or does not answer.
        """
        loop = asyncio.get_running_loop()
        while more > 0 or self._asking:
            while more > 0 and len(self._asking) < _AT_ONCE:
                more = more - 1 if self._open(loop.time()) else 0
            if self._asking:
                await self._wait(loop)
        self._clients = [client for client in self._clients if client.open]
        return len(self._clients)

    def _open(self, now: float) -> bool:
        assert self._route is not None
        client = Client(self._poll, self._route, self._request, keep=True, over=self._over)
        if client.ask(now, now):
            return False
        self._clients.append(client)
        self._asking.add(client)
        return True

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(_SWEEP_S):
                await self._moved.wait()
        except TimeoutError:
            for client in [one for one in self._asking if one.expire(loop.time())]:
                self._asking.discard(client)

    def _ready(self) -> None:
        self._poll.wait(0)

    def _over(self, client: Client, error: str) -> None:
        if error:
            client.close()
        self._asking.discard(client)
        self._moved.set()
