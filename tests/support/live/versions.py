"""A program whose next start is of another version: good, slow, or broken in one of many ways.

A test writes the version into a file; a process reads it once, when it starts. One whose pid is in
the name of a file, `retire-PID`, retires at its next check.
"""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.live.many_clients import once
from tests.support.live.wire import WAIT_S

if TYPE_CHECKING:
    from tests.support.live.cluster import Cluster

PROGRAM = """
import asyncio, os, pathlib, signal, sys, time
from aiohttp import web
from penstock_worker import process

STARTED = time.monotonic()
VERSION = pathlib.Path("version").read_text().strip()
KIND, _, NAME = VERSION.partition(" ")

while pathlib.Path("wait").exists():
    time.sleep(0.01)
if KIND == "unimportable":
    print("about to fail", flush=True)
    raise ImportError("no module named flux_capacitor")
if KIND == "never-ready":
    time.sleep(3600)
if KIND == "once":
    # The first process that starts is good.
    try:
        os.close(os.open("begun", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ImportError("no module named flux_capacitor") from None
if KIND == "hungry":
    raise MemoryError
if KIND == "killed":
    # As by the kernel, where memory is short.
    os.kill(os.getpid(), signal.SIGKILL)

asked = 0
first_check = None

async def hello(request):
    global asked
    asked += 1
    if KIND == "deadly":
        print("cannot serve this", flush=True)
        os._exit(7)
    if KIND == "failing":
        return web.Response(status=500, text="worse than before")
    if KIND == "slow":
        await asyncio.sleep(1)
    return web.Response(text=f"hello from {NAME or KIND} (pid {os.getpid()})")

async def broken(request):
    return web.Response(status=500, text="fails under every version")

async def health(request):
    global first_check
    age = time.monotonic() - STARTED
    first_check = first_check or age
    if pathlib.Path(f"retire-{os.getpid()}").exists():
        process.retire("had enough")
    warm = pathlib.Path("warm").exists()
    if KIND == "unhealthy" or (KIND == "cold" and not warm) or (
        KIND == "short" and pathlib.Path("fall").exists()
    ) or (KIND == "brief" and age > first_check + 1):
        return web.Response(status=503, text="database is away")
    return web.Response(text="ok")

async def socket(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(message.data)
    return ws

async def stream(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    number = 0
    while True:
        await response.write(f"data: {number}\\n\\n".encode())
        number += 1
        await asyncio.sleep(0.05)

async def upload(request):
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
    return web.Response(text=str(total))

def app():
    made = web.Application(client_max_size=0)
    made.router.add_get("/", hello)
    made.router.add_get("/broken", broken)
    made.router.add_get("/healthz", health)
    made.router.add_get("/ws", socket)
    made.router.add_get("/stream", stream)
    made.router.add_post("/upload", upload)
    if KIND == "stubborn":
        async def never(_):
            await asyncio.sleep(3600)
        made.on_cleanup.append(never)
    return made
"""
HEALTH = {"path": "/healthz", "interval": "100ms", "fall": 2, "rise": 1}
QUICK = {"watch": "300ms"}


def write(folder: Path, version: str) -> None:
    """From now on processes start as this version, such as "good v2"."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "version").write_text(version)


class Reload:
    """`penstock reload`, as an operator types it."""

    def __init__(self, run: "Cluster | Path", *words: str) -> None:
        """`run` may be its folder: one that starts is no `Cluster` yet."""
        folder = run if isinstance(run, Path) else run.folder
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "penstock_supervisor", "reload",
                "--run-dir", str(folder / "run"), *words,
            ],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.out = self.err = ""
        self.status = -1
        """Its exit status, once it has ended."""

    def end(self) -> int:
        """Its exit status."""
        self.out, self.err = self._process.communicate(timeout=2 * WAIT_S)
        self.status = self._process.returncode
        return self.status

    @property
    def said(self) -> str:
        return self.out + self.err


def reload(run: "Cluster", *words: str) -> Reload:
    """Run it to its end."""
    made = Reload(run, *words)
    made.end()
    return made


def rollouts(run: "Cluster") -> list[Any]:
    """The oldest first."""
    found = run.status()["rollouts"]
    assert isinstance(found, list)
    return found


def is_at(run: "Cluster", state: str) -> bool:
    """Is a step of the last roll-out in that state?"""
    return step_at(run, state) is not None


def step_at(run: "Cluster", state: str) -> Any:
    """The step of the last roll-out that is in that state; None if there is none."""
    steps = [step for one in rollouts(run)[-1:] for step in one["steps"]]
    return next((step for step in steps if step["state"] == state), None)


def ended(run: "Cluster", number: int = 1) -> Any:
    """Wait for the end of a roll-out, and return it."""
    found: list[Any] = []

    def is_over() -> bool:
        found[:] = [one for one in rollouts(run) if one["number"] == number and one["result"]]
        return bool(found)

    run.until(is_over, f"the end of roll-out {number}")
    return found[0]


def request_reload(run: "Cluster") -> socket.socket:
    """Ask for a reload over the control socket. `accepted` reads the answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT_S)
    sock.connect(str(run.folder / "run" / f"{run.process.pid}.sock"))
    sock.sendall(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return sock


def accepted(asked: socket.socket) -> Any:
    """What the control socket has answered, which has to be 202."""
    response = http.client.HTTPResponse(asked)
    response.begin()
    body = response.read()
    asked.close()
    assert response.status == 202, body
    return json.loads(body)


def served(run: "Cluster") -> str:
    """The version that a request got."""
    status, body = run.get()
    assert status == 200, body
    return body.removeprefix("hello from ").partition(" (pid")[0]


PAUSE_S = 0.01
"""Of a client between two requests: what is tested shall not wait for the processor."""


class Load:
    """Clients that ask all the time, until `end`, which returns what was not a good answer."""

    def __init__(self, run: "Cluster", clients: int = 4, path: bytes = b"/") -> None:
        self._run = run
        self._path = path
        self._address = run.address()
        self._ends = threading.Event()
        self.answers = 0
        self._bad: list[str] = []
        self._thread = threading.Thread(target=asyncio.run, args=(self._ask_all(clients),))
        self._thread.start()

    async def _ask_all(self, clients: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(self._ask())

    async def _ask(self) -> None:
        # A test that fails does not end it.
        while not self._ends.is_set() and self._run.process.poll() is None:
            answer = await once(self._address, self._path)
            self.answers += 1
            if not answer.startswith("hello"):
                self._bad.append(answer)
            await asyncio.sleep(PAUSE_S)

    def end(self) -> list[str]:
        self._ends.set()
        self._thread.join(WAIT_S)
        assert self.answers
        return self._bad


def as_json(text: str) -> Any:
    return json.loads(text)
