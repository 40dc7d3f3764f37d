"""A worker's whole life, with real processes: what it says, how it serves, why it leaves.

One scenario each. A test knows the port from the kernel, so no two can want the same.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock_worker import channel
from penstock_worker.contract import (
    CHANNEL_FD,
    EXIT_FAILED,
    FAILED,
    INTERNAL,
    ONLINE,
    READY,
    STATS,
)

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


class Served:
    """One worker process and, if it has a supervisor, the supervisor's end of the channel."""

    def __init__(self, directory: Path, spec: str, *, supervised: bool, **variables: str) -> None:
        self.directory = directory
        environment = {**os.environ, "PORT": "0", **variables}
        self.link, theirs = channel.pair()
        if supervised:
            environment[CHANNEL_FD] = str(theirs.fileno())
        self._stderr = directory / "stderr"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock_worker.serve", spec],
                cwd=directory,
                env=environment,
                pass_fds=(theirs.fileno(),) if supervised else (),
                stdout=stderr,
                stderr=stderr,
            )
        theirs.close()
        self.link.settimeout(DEADLINE_S)
        self._lines = self.link.makefile("rb")

    def tell(self, message: dict[str, Any]) -> None:
        self.link.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next message but the first, which is always the same."""
        message: dict[str, Any] = json.loads(self._lines.readline())
        return self.hear() if message["cmd"] == ONLINE else message

    def words(self) -> list[str]:
        """All that it ever says from now on."""
        return [json.loads(line)["cmd"] for line in self._lines]

    def hang_up(self) -> None:
        self._lines.close()
        self.link.close()

    def stderr(self) -> str:
        return self._stderr.read_text()

    def port(self) -> int:
        assert self.hear() == {"cmd": READY}, self.stderr()
        (port,) = listening(self.process.pid)
        return port

    def exit_status(self) -> int:
        return self.process.wait(DEADLINE_S)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()


def listening(pid: int) -> list[int]:
    found = psutil.Process(pid).net_connections("inet")
    return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def get(port: int, path: str = "/") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def request(port: int, path: str) -> Iterator[http.client.HTTPConnection]:
    """Ask, and let the block decide what happens before the answer is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        yield connection


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start workers of the programs above; they end with the test."""
    for name, text in (
        ("aio.py", AIOHTTP), ("asg.py", ASGI), ("refuses.py", REFUSES),
        ("breaks.py", BREAKS), ("looks.py", LOOKS),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    with contextlib.ExitStack() as stack:

        def start(spec: str, *, supervised: bool = True, **variables: str) -> Served:
            served = Served(tmp_path, spec, supervised=supervised, **variables)
            stack.callback(served.end)
            return served

        yield start


@pytest.mark.parametrize("spec", ["aio:app", "aio:make", "aio:make_later", "asg:app", "asg:make"])
def test_a_program_is_served_once_it_is_ready_and_cleaned_up_at_its_end(
    serve: Serve, spec: str
) -> None:
    served = serve(spec)
    assert get(served.port()) == (200, b"hello")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert (served.directory / "cleaned").exists()
    assert served.stderr() == "", "a worker has nothing to say, not even who asked for what"


@pytest.mark.parametrize("spec", ["aio:app", "asg:app"])
def test_term_lets_a_request_finish_and_admits_no_other(serve: Serve, spec: str) -> None:
    served = serve(spec)
    port = served.port()
    with request(port, "/slow") as slow, request(port, "/") as idle:
        assert idle.getresponse().read() == b"hello"
        until(lambda: (served.directory / "begun").exists())
        served.signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b"", "an idle connection is closed at once"
        until(lambda: listening(served.process.pid) == [])
        served.signal(signal.SIGTERM)
        (served.directory / "finish").touch()
        assert slow.getresponse().read() == b"slow"
    assert served.exit_status() == 0


def test_what_is_long_is_told_to_close(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app")
    with request(served.port(), "/sse") as events:
        answer = events.getresponse()
        assert answer.readline() == b"id: 0\n"
        served.signal(signal.SIGTERM)
        answer.read()
    assert served.exit_status() == 0


def test_an_impatient_second_interrupt_ends_it_at_once(serve: Serve) -> None:
    served = serve("aio:app")
    port = served.port()
    with request(port, "/slow"):
        until(lambda: (served.directory / "begun").exists())
        served.signal(signal.SIGINT)
        until(lambda: listening(served.process.pid) == [])
        served.signal(signal.SIGINT)
        assert served.exit_status() == 128 + signal.SIGINT


def test_a_handler_is_cancelled_when_its_client_is_gone(serve: Serve) -> None:
    served = serve("aio:app")
    with request(served.port(), "/slow"):
        until(lambda: (served.directory / "begun").exists())
    until(lambda: (served.directory / "cancelled").exists())


@pytest.mark.parametrize("spec", ["aio:app", "asg:app"])
def test_it_leaves_when_its_supervisor_is_gone(serve: Serve, spec: str) -> None:
    served = serve(spec)
    assert get(served.port()) == (200, b"hello")
    served.hang_up()
    assert served.exit_status() == 0
    assert (served.directory / "cleaned").exists()


def test_what_never_finishes_does_not_outlive_the_supervisor_for_long(serve: Serve) -> None:
    served = serve("aio:app")
    with request(served.port(), "/slow"):
        until(lambda: (served.directory / "begun").exists())
        served.hang_up()
        assert served.exit_status() == 1


@pytest.mark.parametrize("spec", ["aio:app", "asg:app"])
def test_it_counts_its_descriptors_by_kind(serve: Serve, spec: str) -> None:
    served = serve(spec)
    port = served.port()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(request(port, "/"))
            assert connection.getresponse().read() == b"hello"
        served.tell({"cmd": INTERNAL + "FUTURE"})
        served.tell({"cmd": STATS, "seq": 7})
        answer = served.hear()
        total = psutil.Process(served.process.pid).num_fds()
    assert (answer["cmd"], answer["seq"]) == (STATS, 7)
    fds = answer["metrics"]["fds"]
    assert (fds["listener"], fds["client"], fds["channel"]) == (1, 3, 1)
    assert sum(fds.values()) == total


def test_a_loop_that_was_stuck_says_so(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app")
    assert get(served.port(), "/burn?ms=800")[0] == 200
    served.tell({"cmd": STATS, "seq": 1})
    # A timer every half second was due during the burning, whenever that began.
    assert served.hear()["metrics"]["loop_lag_s"] > 0.2


def test_a_crash_is_real(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app", PENSTOCK_SERVICE="web", PENSTOCK_SLOT="1")
    status, text = get(served.port(), "/crash")
    assert (status, text) == (200, f"web/1 (pid {served.process.pid}) dies now\n".encode())
    assert served.exit_status() == 1


@pytest.mark.parametrize(
    ("spec", "text", "reason", "shown"),
    [
        ("bad:app", "import nosuch\n",
         "import \"bad:app\": ModuleNotFoundError: No module named 'nosuch' (bad.py:1)", True),
        ("bad:app", "def f(:\n", 'cannot import "bad:app": SyntaxError: ', True),
        ("bad:app", "", 'cannot import "bad:app": module "bad" has no attribute "app"', False),
        ("bad:app", "app = 5\n", '"bad:app" is an int, not an aiohttp Application', False),
        ("bad:make", "def make(): return 5\n", '"bad:make()" is an int, not', False),
        ("bad:app", "def app(environ, start_response): pass\n", "like a WSGI application", False),
        ("bad", "", '"bad" is not MODULE:ATTRIBUTE', False),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_served_is_one_line_and_its_own_traceback(
    serve: Serve, tmp_path: Path, spec: str, text: str, reason: str, shown: bool
) -> None:
    (tmp_path / "bad.py").write_text(text)
    served = serve(spec)
    message = served.hear()
    assert message["cmd"] == FAILED
    assert reason in message["reason"]
    assert served.exit_status() == EXIT_FAILED
    assert ("Traceback" in served.stderr() or "SyntaxError" in served.stderr()) is shown


def test_an_asgi_program_without_uvicorn_is_told_what_to_install(
    serve: Serve, tmp_path: Path
) -> None:
    # Beside the program, and so before the real one; it says that there is none.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    served = serve("asg:app", PYTHONPATH=str(tmp_path))
    assert 'pip install "penstock[asgi]"' in served.hear()["reason"]
    assert served.exit_status() == EXIT_FAILED


def test_a_port_in_use_is_one_line(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = serve("aio:app", PORT=str(port))
        reason = f"cannot listen on 127.0.0.1:{port}: address already in use"
        assert served.hear() == {"cmd": FAILED, "reason": reason}
        assert served.exit_status() == EXIT_FAILED
    assert served.stderr() == ""


@pytest.mark.parametrize("spec", ["breaks:app", "refuses:app"])
def test_a_start_that_may_work_next_time_is_no_reason_to_give_up(serve: Serve, spec: str) -> None:
    served = serve(spec)
    assert served.exit_status() == 1
    assert served.words() == [ONLINE]
    assert f'cannot start "{spec}": ' in served.stderr()
    assert "the database is away" in served.stderr()


def test_by_hand_it_says_where_it_is_and_why_it_is_not(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app", supervised=False)
    until(lambda: "\n" in served.stderr())
    (port,) = listening(served.process.pid)
    where = f"http://127.0.0.1:{port} (pid {served.process.pid})"
    assert served.stderr() == f"penstock_worker: penstock_worker.demo:app on {where}\n"
    assert get(port, "/healthz") == (200, b"ok\n")
    served.signal(signal.SIGINT)
    assert served.exit_status() == 0

    served = serve("nosuch:app", supervised=False)
    assert served.exit_status() == EXIT_FAILED
    line = "cannot import \"nosuch:app\": ModuleNotFoundError: No module named 'nosuch'"
    assert served.stderr() == f"penstock_worker: {line}\n"


@pytest.mark.parametrize("spec", ["", "--help"])
def test_without_a_program_it_says_how_it_is_used(serve: Serve, spec: str) -> None:
    served = serve(spec, supervised=False)
    assert served.exit_status() in {2, EXIT_FAILED}
    assert "MODULE:ATTRIBUTE" in served.stderr()


def test_what_a_program_starts_inherits_no_channel_and_no_names_of_it(serve: Serve) -> None:
    served = serve(
        "looks:app", LISTEN_FDS="1", LISTEN_PID="1", NOTIFY_SOCKET="/x", PENSTOCK_SLOT="2"
    )
    environ, descriptors = json.loads(get(served.port())[1])
    assert not {CHANNEL_FD, "LISTEN_FDS", "NOTIFY_SOCKET"} & set(environ)
    assert environ["PENSTOCK_SLOT"] == "2"
    # Its three, and the one that lists them.
    assert len(descriptors) == 4


async def test_websockets_work_through_asgi(serve: Serve) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    port = serve("asg:app").port()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/") as websocket,
    ):
        await websocket.send_str("ä")
        assert await websocket.receive_str() == "ä"
