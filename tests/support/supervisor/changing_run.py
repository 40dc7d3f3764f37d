"""A whole run in this process, with real proxies and workers, that a test changes.

It drives a change as a roll-out does, without a way back.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.config.model import Config, Dns, Service
from penstock_supervisor.rollout.preparation import Prepared
from penstock_supervisor.rollout.reconfiguration import Reconfiguration
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.versions import RunVersions
from penstock_supervisor.supervisor import Supervisor

WAIT_S = 20.0
PROGRAM = """
import asyncio, os
from aiohttp import web

async def hello(request):
    service, colour = os.environ["PENSTOCK_SERVICE"], os.environ.get("COLOUR", "")
    return web.Response(text=f"{service} {colour} {os.getpid()} {os.getcwd()}")

async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(10_000):
        await response.write(b"tick %d\\n" % number)
        await asyncio.sleep(0.05)
    return response

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/stream", stream)
"""


def service(name: str = "web", **keys: Any) -> Service:
    defaults: dict[str, Any] = {
        "listen": "127.0.0.1:0", "access_log": "off", "timeouts": {"stop": "10s"},
    }  # fmt: skip
    if not keys.keys() & {"command", "upstreams"}:
        defaults |= {"app": "changing:app", "workers": 2, "rollout": {"watch": "0s"}}
    return Service.model_validate({"name": name, **defaults, **keys})


def config(*services: Service, proxies: int = 1, name_servers: tuple[str, ...] = ()) -> Config:
    dns = Dns(servers=name_servers)
    return Config(admin="", run_dir="", services=services, proxies=proxies, dns=dns)


class ChangingRun:
    def __init__(self, first: Config) -> None:
        self.started = asyncio.Event()
        self._out = os.open(os.devnull, os.O_WRONLY)
        self.supervisor = Supervisor(
            first,
            environment=dict(os.environ),
            on_started=lambda _: self.started.set(),
            stdout=self._out,
            stderr=self._out,
        )

    def close(self) -> None:
        os.close(self._out)

    @property
    def resources(self) -> Resources:
        return self.supervisor._resources

    @property
    def reconfiguration(self) -> Reconfiguration:
        driver: Any = self.supervisor._rollouts._driver
        found: Reconfiguration = driver._parts.reconfiguration
        return found

    @property
    def versions(self) -> RunVersions:
        driver: Any = self.supervisor._rollouts._driver
        found: RunVersions = driver._parts.versions
        return found

    def address(self, name: str = "web") -> tuple[str, int]:
        found = self.resources.listeners[name].address
        return found.host, found.port

    def worker(self, slot: Slot) -> Child:
        return self.supervisor._slots.current[slot]

    def pids(self, name: str = "web") -> set[int | None]:
        current = self.supervisor._slots.current
        return {child.pid for slot, child in current.items() if slot[0] == name}

    @property
    def covered(self) -> set[int]:
        return self.supervisor._slots.covered

    def proxies(self) -> list[int]:
        return sorted(one.plan.slot for one in self.supervisor._slots.proxies)

    # A change, as a roll-out does it.

    async def change(self, new: Config) -> Prepared:
        prepared = await self.begin(new)
        await self.end(prepared)
        return prepared

    async def begin(self, new: Config) -> Prepared:
        """With the workers that it needs."""
        prepared = await self.reconfiguration.prepare(new)
        await self.reconfiguration.apply(prepared)
        await self.bring_workers(prepared)
        return prepared

    async def bring_workers(self, prepared: Prepared) -> None:
        """Bring all slots to what is in force."""
        current = self.supervisor._slots.current
        wanted = [
            (one.name, number)
            for one in prepared.after.config.services
            for number in range(one.workers if one.has_program else 0)
        ]
        changed = [
            slot
            for slot in wanted
            if slot not in current or self.resources.needs_new_process(current[slot])
        ]
        gone = [slot for slot in current if slot[0] in prepared.after.services]
        await self._bring(*changed, *(slot for slot in gone if slot not in wanted))

    async def end(self, prepared: Prepared) -> None:
        await self.reconfiguration.finish(prepared)
        await self.reconfiguration.until_unused(lambda: False)
        current = self.supervisor._slots.current
        await self._bring(*(slot for slot in current if slot[0] in prepared.removed))
        self.reconfiguration.forget()

    async def _bring(self, *slots: Slot) -> None:
        """Bring these slots to what is in force."""
        replacements = self.supervisor._replacements
        for slot in slots:
            replacements.request_slot(slot, "the test wants it")
        await until(lambda: not replacements.is_rolling)


@asynccontextmanager
async def running(folder: Path, first: Config) -> AsyncIterator[ChangingRun]:
    """A run that has started, in `folder`. At the end it is stopped, and must leave nothing."""
    (folder / "changing.py").write_text(PROGRAM)
    run = ChangingRun(first)
    try:
        async with asyncio.timeout(3 * WAIT_S), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(run.supervisor.run())
            await run.started.wait()
            try:
                yield run
            finally:
                run.supervisor.stop()
            assert await task == 0
    finally:
        run.close()
        left = psutil.Process().children(recursive=True)
        assert [child.name() for child in left] == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.02)


class Stream:
    """A response that does not end, and whether it goes on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: tuple[str, int]) -> "Stream":
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        stream = cls(reader, writer)
        assert await stream.line() == "HTTP/1.1 200 OK"
        return stream

    async def line(self) -> str:
        return (await asyncio.wait_for(self._reader.readline(), WAIT_S)).decode().strip()

    async def goes_on(self) -> bool:
        """Does it tick: twice from now on, so that what waited is read?"""
        with suppress(OSError):
            last = -1
            for _ in range(2):
                while not (line := await self.line()).startswith("tick"):
                    if not line and self._reader.at_eof():
                        return False
                last = int(line.split()[1])
            return last > 0
        return False

    async def ended(self) -> None:
        with suppress(OSError):
            await asyncio.wait_for(self._reader.read(), WAIT_S)

    def close(self) -> None:
        self._writer.close()
