"""A worker process starts, serves, reports to its supervisor, and exits as documented.

Real processes, one scenario each. The kernel picks the ports, so no two tests use the same.

Covers `contract`, `runtime/supervisor_link` and `telemetry/loop_lag`.
Covers `servers/aiohttp_server`, `servers/asgi_server` and `servers/asgi_websockets`.
"""

import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live import stopping_programs

from penstock_worker.contract import (
    CHANNEL_FD,
    CUT,
    EXIT_FAILED,
    FAILED,
    INTERNAL,
    ONLINE,
    STATS,
    STOP,
)
from penstock_worker.telemetry.loop_lag import BUCKETS_S

if TYPE_CHECKING:
    from tests.worker.conftest import Served

DEADLINE_S = 30.0

Serve = Callable[..., "Served"]


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
    """Send a request; the block decides what happens before the answer is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        yield connection


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
        until(lambda: served.listening() == [])
        served.signal(signal.SIGTERM)
        (served.directory / "finish").touch()
        assert slow.getresponse().read() == b"slow"
    assert served.exit_status() == 0


def test_after_term_the_rest_of_an_upload_is_taken(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app")
    port = served.port()
    upload = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(upload), request(port, "/") as idle:
        upload.putrequest("POST", "/echo")
        upload.putheader("Content-Length", "8")
        upload.endheaders(b"half")
        upload.sock.settimeout(DEADLINE_S)
        idle.getresponse().read()
        served.signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b"", "nobody is waited for any more but who is served"
        upload.send(b"more")
        answer = upload.getresponse()
        assert answer.read() == b"halfmore"
    assert served.exit_status() == 0


def test_an_event_stream_is_closed_at_term(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app")
    with request(served.port(), "/sse") as events:
        answer = events.getresponse()
        assert answer.readline() == b"id: 0\n"
        served.signal(signal.SIGTERM)
        answer.read()
    assert served.exit_status() == 0


def test_a_second_interrupt_ends_the_worker_at_once(serve: Serve) -> None:
    served = serve("aio:app")
    port = served.port()
    with request(port, "/slow"):
        until(lambda: (served.directory / "begun").exists())
        served.signal(signal.SIGINT)
        until(lambda: served.listening() == [])
        served.signal(signal.SIGINT)
        assert served.exit_status() == 128 + signal.SIGINT


def test_a_handler_is_cancelled_when_its_client_is_gone(serve: Serve) -> None:
    served = serve("aio:app")
    with request(served.port(), "/slow"):
        until(lambda: (served.directory / "begun").exists())
    until(lambda: (served.directory / "cancelled").exists())
    assert served.process.poll() is None


@pytest.mark.parametrize("spec", ["aio:app", "asg:app"])
def test_a_worker_exits_when_its_supervisor_is_gone(serve: Serve, spec: str) -> None:
    served = serve(spec)
    assert get(served.port()) == (200, b"hello")
    served.close_channel()
    assert served.exit_status() == 0
    assert (served.directory / "cleaned").exists()


def test_a_request_that_never_finishes_does_not_outlive_the_supervisor_for_long(
    serve: Serve,
) -> None:
    served = serve("aio:app")
    with request(served.port(), "/slow"):
        until(lambda: (served.directory / "begun").exists())
        served.close_channel()
        assert served.exit_status() == 1


@pytest.mark.parametrize("spec", ["aio:app", "asg:app"])
def test_descriptors_are_counted_by_kind(serve: Serve, spec: str) -> None:
    served = serve(spec)
    port = served.port()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(request(port, "/"))
            assert connection.getresponse().read() == b"hello"
        served.send({"cmd": INTERNAL + "FUTURE"})
        served.send({"cmd": STATS, "seq": 7})
        answer = served.receive()
        total = psutil.Process(served.process.pid).num_fds()
    assert (answer["cmd"], answer["seq"]) == (STATS, 7)
    fds = answer["metrics"]["fds"]
    assert (fds["listener"], fds["client"], fds["channel"]) == (1, 3, 1)
    assert sum(fds.values()) == total


def test_a_blocked_loop_is_reported_as_lag(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app")
    assert get(served.port(), "/burn?ms=800")[0] == 200
    # A timer every tenth of a second was due during the burning, whenever that began. It may come
    # after the answer.
    deadline = time.monotonic() + 10
    counts, total_s = [0], 0.0
    while total_s <= 0.1 and time.monotonic() < deadline:
        served.send({"cmd": STATS, "seq": 1})
        *counts, total_s = served.receive()["metrics"]["loop_lag"]
    assert total_s > 0.1
    assert sum(counts[BUCKETS_S.index(0.1) :]) >= 1


def test_the_crash_page_ends_the_process(serve: Serve) -> None:
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
def test_a_program_that_cannot_be_served_is_a_failure_in_one_line_with_its_own_traceback(
    serve: Serve, tmp_path: Path, spec: str, text: str, reason: str, shown: bool
) -> None:
    (tmp_path / "bad.py").write_text(text)
    served = serve(spec)
    message = served.receive()
    assert message["cmd"] == FAILED
    assert reason in message["reason"]
    assert served.exit_status() == EXIT_FAILED
    assert ("Traceback" in served.stderr() or "SyntaxError" in served.stderr()) is shown


def test_an_asgi_program_without_uvicorn_is_a_failure_that_names_the_package(
    serve: Serve, tmp_path: Path
) -> None:
    # Found before the real module: it makes the import of uvicorn fail.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    served = serve("asg:app", PYTHONPATH=str(tmp_path))
    assert 'pip install "penstock-lb[asgi]"' in served.receive()["reason"]
    assert served.exit_status() == EXIT_FAILED


def test_a_port_in_use_is_one_line_and_not_final(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = serve("aio:app", PORT=str(port))
        assert served.exit_status() == 1
    reason = f"cannot listen on 127.0.0.1:{port}: address already in use"
    assert served.stderr() == f"penstock_worker: {reason}\n"


@pytest.mark.parametrize("spec", ["breaks:app", "refuses:app"])
def test_a_startup_that_fails_is_reported_as_an_exit_and_not_as_final(
    serve: Serve, spec: str
) -> None:
    served = serve(spec)
    assert served.exit_status() == 1
    assert served.commands() == [ONLINE]
    assert f'cannot start "{spec}": ' in served.stderr()
    assert "the database is away" in served.stderr()


def test_without_a_supervisor_the_address_and_errors_go_to_stderr(serve: Serve) -> None:
    served = serve("penstock_worker.demo:app", supervised=False)
    until(lambda: "\n" in served.stderr())
    (port,) = served.listening()
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
def test_without_a_program_the_usage_is_printed(serve: Serve, spec: str) -> None:
    served = serve(spec, supervised=False)
    assert served.exit_status() in {2, EXIT_FAILED}
    assert "MODULE:ATTRIBUTE" in served.stderr()


def test_children_of_the_program_inherit_no_channel_and_no_variables_of_it(serve: Serve) -> None:
    served = serve(
        "looks:app", LISTEN_FDS="1", LISTEN_PID="1", NOTIFY_SOCKET="/x", PENSTOCK_SLOT="2"
    )
    environ, descriptors = json.loads(get(served.port())[1])
    assert not {CHANNEL_FD, "LISTEN_FDS", "NOTIFY_SOCKET"} & set(environ)
    assert environ["PENSTOCK_SLOT"] == "2"
    # Its three standard descriptors, and the one of the listing.
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


_UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize("kind", stopping_programs.KINDS)
def test_a_websocket_that_is_opened_after_the_notice_is_closed_as_well(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    stopping_programs.write(tmp_path)
    served = serve(f"{kind}:app")
    port = served.port()
    served.send({"cmd": STOP, "finish": 3600.0, "within": 3600.0})
    # Until TERM it accepts: the notice alone closes nothing.
    assert get(port) == (200, b"ok")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(_UPGRADE)
        received = b""
        while b"\x88" not in received.partition(b"\r\n\r\n")[2]:
            piece = client.recv(1000)
            assert piece, received
            received += piece
    assert received.startswith(b"HTTP/1.1 101 ")
    assert b"\x03\xe9" in received, "1001: going away"
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert list(tmp_path.glob("cleaned-*"))


@pytest.mark.parametrize("kind", stopping_programs.KINDS)
def test_a_worker_tells_how_much_it_cut_and_cleans_up(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    stopping_programs.write(tmp_path)
    served = serve(f"{kind}:app")
    with request(served.port(), "/hang"):
        until(lambda: (tmp_path / "begun-hang").exists())
        served.send({"cmd": STOP, "finish": 0.0, "within": 3600.0})
        assert served.receive() == {"cmd": CUT, "count": 1}
        assert served.exit_status() == 0
    assert list(tmp_path.glob("cleaned-*"))
