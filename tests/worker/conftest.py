"""Worker processes for tests, the programs that they run, and the supervisor's end of a channel."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock_worker.channel import channel, framing
from penstock_worker.contract import CHANNEL_FD, LINK_FD, LISTEN_FDS, ONLINE, READY, STATS

DEADLINE_S = 30.0

AIOHTTP = """
import asyncio
from pathlib import Path
from aiohttp import web

async def hello(request):
    return web.Response(text="hello")

async def slow(request):
    Path("begun").touch()
    try:
        while not Path("finish").exists():
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        Path("cancelled").touch()
        raise
    return web.Response(text="slow")

async def cleanup(app):
    yield
    Path("cleaned").touch()

def make():
    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/slow", slow)
    app.cleanup_ctx.append(cleanup)
    return app

async def make_later():
    asyncio.get_running_loop()
    return make()

app = make()
"""

ASGI = """
import asyncio
from pathlib import Path

async def respond(send, text):
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})

async def lifespan(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            Path("cleaned").touch()
            await send({"type": "lifespan.shutdown.complete"})
            return

async def websocket(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["path"] == "/slow":
        Path("begun").touch()
        while not Path("finish").exists():
            await asyncio.sleep(0.01)
        await respond(send, b"slow")
    elif scope["path"] == "/headers":
        await respond(send, repr((scope["client"], scope["server"])).encode())
    else:
        await respond(send, b"hello")

def make():
    return app
"""

REFUSES = """
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
"""

BREAKS = """
from aiohttp import web

async def connect(app):
    raise ConnectionRefusedError("the database is away")

app = web.Application()
app.on_startup.append(connect)
"""

LOOKS = """
import json, os, subprocess, sys
from aiohttp import web

LOOK = 'import json, os; print(json.dumps([dict(os.environ), os.listdir("/proc/self/fd")]))'

async def look(request):
    found = json.loads(subprocess.check_output([sys.executable, "-c", LOOK], close_fds=False))
    return web.json_response(found)

app = web.Application()
app.router.add_get("/", look)
"""


RETIRES = """
import asyncio, sys, threading
from aiohttp import web
from penstock_worker import process

def broken():
    raise RuntimeError("nobody catches this")

async def fails():
    broken()

def deep(kind=0):
    deep(kind + 1) if kind < 900 else broken()

def gone():
    raise ConnectionResetError("the client left")

class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("never")

async def unspeakable():
    raise Unspeakable

async def group():
    raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])

def endless():
    endless()

class Finalized:
    def __del__(self):
        broken()

async def leave():
    sys.exit(3)

@process.on_message
def callback(message, handle):
    if handle is not None:
        handle.close()
    process.send({"heard": message, "handle": handle is not None})

async def hello(request):
    return web.Response(text="hello")

async def retire(request):
    if "thread" in request.query:
        await asyncio.to_thread(process.retire, "had enough")
    else:
        process.retire("had enough")
    return web.Response(text="retired")

async def throw(request):
    kind = request.match_info["kind"]
    if kind == "callback":
        asyncio.get_running_loop().call_soon(broken)
    elif kind == "task":
        asyncio.get_running_loop().create_task(fails())
    elif kind == "thread":
        threading.Thread(target=broken).start()
    elif kind == "deep":
        asyncio.get_running_loop().call_soon(deep)
    elif kind == "gone":
        asyncio.get_running_loop().call_soon(gone)
    elif kind == "endless":
        asyncio.get_running_loop().call_soon(endless)
    elif kind == "finalizer":
        Finalized()
    elif kind in TASKS:
        asyncio.get_running_loop().create_task(TASKS[kind](), name=kind)
    elif kind == "handler":
        broken()
    elif kind == "exit-handler":
        sys.exit(3)
    return web.Response(text=kind)

TASKS = {"unspeakable": unspeakable, "group": group, "exit": leave}

async def flood(request):
    for _ in range(int(request.query["n"])):
        asyncio.get_running_loop().call_soon(broken)
    return web.Response(text="flood")

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/throw/{kind}", throw)
app.router.add_get("/retire", retire)
app.router.add_get("/flood", flood)
"""

FORKS = """
import asyncio, multiprocessing, os, signal, sys, time
from aiohttp import web
from penstock_worker import process

def inodes(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    return found

def facts(send):
    send.send({
        "sent": process.send("from the child"),
        "handlers": [repr(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, 49)],
        "blocked": sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "open": sorted(inodes(os.getpid())),
    })
    time.sleep(1000)

async def look(request):
    context = multiprocessing.get_context(request.query["method"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=facts, args=(send,))
    await asyncio.to_thread(child.start)
    found = await asyncio.to_thread(receive.recv)
    ours = inodes(os.getpid())
    child.terminate()
    await asyncio.to_thread(child.join)
    return web.json_response({**found, "exitcode": child.exitcode, "ours": sorted(ours)})

def sleep():
    time.sleep(1000)

async def many(request):
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(int(request.query["n"])):
        child = context.Process(target=sleep)
        child.start()
        child.terminate()
        await asyncio.to_thread(child.join)
        codes.append(child.exitcode)
    return web.json_response(codes)

async def raw(request):
    pid = os.fork()
    if not pid:
        if request.query["way"] == "exit":
            sys.exit(9)
        return web.Response(text="from the child")
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return web.json_response(os.waitstatus_to_exitcode(status))

async def stays(request):
    child = multiprocessing.get_context("fork").Process(target=sleep)
    child.start()
    return web.Response(text=str(child.pid))

async def hello(request):
    return web.Response(text=str(os.getpid()))

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/healthz", hello)
app.router.add_get("/look", look)
app.router.add_get("/many", many)
app.router.add_get("/raw", raw)
app.router.add_get("/stays", stays)
"""

BLOCKS = """
import asyncio, ctypes, time
from aiohttp import web

async def waits_for_the_database():
    await asyncio.sleep(1000)

async def block(request):
    ends = time.monotonic() + 1000
    open("blocked", "w").close()
    if request.query["by"] == "sleep":
        time.sleep(1000)
    elif request.query["by"] == "c":
        # PyDLL: the lock of the interpreter is held.
        ctypes.PyDLL(None).sleep(1000)
    while time.monotonic() < ends:
        pass

async def start(app):
    app["waiting"] = [asyncio.create_task(waits_for_the_database()) for _ in range(500)]

app = web.Application()
app.on_startup.append(start)
app.router.add_get("/", block)
"""

PASSES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.close(int(sys.argv[1]))
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""LISTEN_PID is known only after the fork, and a passed socket is expected at descriptor 3."""


class Served:
    """One worker process and, if it has a supervisor, the supervisor's end of the channel."""

    def __init__(
        self,
        directory: Path,
        spec: str,
        *,
        supervised: bool = True,
        passed: socket.socket | None = None,
        link: socket.socket | None = None,
        inherits: Sequence[int] = (),
        **variables: str,
    ) -> None:
        self.directory = directory
        environment = {**os.environ, "PORT": "0", **variables}
        self.link, theirs = channel.pair()
        self.channel_inode = os.fstat(theirs.fileno()).st_ino
        inherited = list(inherits)
        command = [sys.executable]
        if supervised:
            environment[CHANNEL_FD] = str(theirs.fileno())
            inherited.append(theirs.fileno())
        if link is not None:
            environment[LINK_FD] = str(link.fileno())
            inherited.append(link.fileno())
        if passed is not None:
            environment[LISTEN_FDS] = "1"
            command += ["-c", PASSES, str(passed.fileno())]
            inherited.append(passed.fileno())
        assert 3 not in inherited, "a passed socket would take its place"
        handle, name = tempfile.mkstemp(dir=directory, prefix="stderr")
        self._stderr = Path(name)
        self.process = subprocess.Popen(
            [*command, "-m", "penstock_worker.serve", spec],
            cwd=directory,
            env=environment,
            pass_fds=inherited,
            stdout=handle,
            stderr=handle,
        )
        os.close(handle)
        theirs.close()
        self.link.settimeout(DEADLINE_S)
        self._lines = self.link.makefile("rb")

    def send(self, message: dict[str, Any], handle: socket.socket | None = None) -> None:
        if handle is None:
            self.link.sendall(framing.encode(message))
            return
        line = framing.encode(framing.envelope(message, handle))
        assert socket.send_fds(self.link, [line], [handle.fileno()]) == len(line)
        assert self.receive() == {"cmd": framing.ACK}

    def receive(self) -> dict[str, Any]:
        """The next message, without the first: that is always ONLINE."""
        message: dict[str, Any] = json.loads(self._lines.readline())
        return self.receive() if message.get("cmd") == ONLINE else message

    def stats(self) -> dict[str, Any]:
        self.send({"cmd": STATS, "seq": 1})
        metrics: dict[str, Any] = self.receive()["metrics"]
        return metrics

    def commands(self) -> list[str]:
        """The commands of all messages from now on, until the worker closes the channel."""
        return [json.loads(line)["cmd"] for line in self._lines]

    def messages(self) -> list[dict[str, Any]]:
        """All messages from now on, until the worker closes the channel."""
        return [json.loads(line) for line in self._lines]

    def close_channel(self) -> None:
        self._lines.close()
        self.link.close()

    def stderr(self) -> str:
        return self._stderr.read_text()

    def ready(self) -> "Served":
        assert self.receive() == {"cmd": READY}, self.stderr()
        return self

    def listening(self) -> list[int]:
        """The ports that the worker listens on."""
        found = psutil.Process(self.process.pid).net_connections("inet")
        return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]

    def port(self) -> int:
        (port,) = self.ready().listening()
        return port

    def exit_status(self) -> int:
        return self.process.wait(DEADLINE_S)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stop the process until it gets CONT."""
        self.signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED)[1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close_channel()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start workers of the programs above; they end with the test."""
    for name, text in (
        ("aio.py", AIOHTTP), ("asg.py", ASGI), ("refuses.py", REFUSES), ("breaks.py", BREAKS),
        ("looks.py", LOOKS), ("retires.py", RETIRES),
        ("forks.py", FORKS), ("blocks.py", BLOCKS),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    with contextlib.ExitStack() as stack:
        # Takes descriptor 3, so that none of the test is 3 in a worker.
        stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))

        def start(spec: str, **settings: Any) -> Served:
            served = Served(tmp_path, spec, **settings)
            stack.callback(served.end)
            return served

        yield start
