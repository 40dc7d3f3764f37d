"""A request is executed by no more workers than `retries.attempts`, whatever it does to them.

Each worker notes what it executes, so it is counted where it happens. Waits of the proxy are far
longer here than any test: whatever is answered is answered without them.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import PASSED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GARBAGE = b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
SELDOM = {"interval": "1h"}
"""Health checks that notice nothing while a test lasts."""
PATIENT = {"queue": "1h"}
"""A request that waits in the queue is not answered while a test lasts."""
LENIENT = {"max_restarts": 1_000_000, "backoff": "50ms", "backoff_max": "100ms"}
"""No worker is given up."""
NO_EJECTION = {"failures": 0, "share": "0%"}
WORKERS = 4

NOTE = """
import os

def note():
    fd = os.open("executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (os.environ["PENSTOCK_SLOT"] + "\\n").encode())
    os.close(fd)
"""
APP = (
    NOTE
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/die":
        note()
        os._exit(7)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"well"})
"""
)
COMMAND = (
    NOTE
    + """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/die":
            note()
            os._exit(7)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"well")

    do_POST = do_PUT = do_GET

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
)


def request(method: str, path: str = "/") -> bytes:
    body = "" if method == "GET" else "Content-Length: 4\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{body}\r\n".encode() + b"body" * (
        method != "GET"
    )


def executed(folder: "Path") -> list[str]:
    """The slots of the workers that executed /die, in order."""
    path = folder / "executed"
    return path.read_text().split() if path.exists() else []


def all_are_up(run: "Cluster") -> bool:
    return all(worker["health"] in ("up", None) for worker in run.workers())


# -- a request that ends its worker


@pytest.mark.parametrize("kind", ["app", "command"])
@pytest.mark.parametrize(
    ("method", "attempts", "times"),
    [("GET", 2, 2), ("PUT", 2, 2), ("POST", 2, 1), ("GET", 1, 1), ("PUT", 1, 1), ("GET", 3, 3)],
)
@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
def test_a_request_that_ends_its_worker_ends_no_more_than_are_allowed_to_execute_it(
    penstock: "Penstock",
    tmp_path: "Path",
    kind: str,
    method: str,
    attempts: int,
    times: int,
    *,
    kept: bool,
) -> None:
    (tmp_path / "program.py").write_text(APP if kind == "app" else COMMAND)
    program: dict[str, Any] = {"app": "program:app"}
    if kind == "command":
        program = {"command": [sys.executable, "program.py"]}
    run = penstock(
        **program, workers=WORKERS, restart=LENIENT, retries={"attempts": attempts},
        timeouts=PATIENT,
    )  # fmt: skip
    wire = run.connect()
    for _ in range(3 * WORKERS * kept):
        assert wire.ask(request("GET")).status == 200
    assert wire.ask(request(method, "/die")).status == 502
    slots = executed(tmp_path)
    assert len(slots) == len(set(slots)) == times
    run.until(lambda: all_are_up(run))
    assert wire.ask(request("GET")).body == b"well"
    assert executed(tmp_path) == slots
    run.until(lambda: run.metric("penstock_child_exits_total", status="7") == times)
    # A POST is not counted: it was not to be repeated in any case.
    assert run.metric("penstock_retries_exhausted_total") == (method != "POST")


@pytest.mark.parametrize("scheme", PASSED)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_without_a_proxy_in_between_a_request_that_ends_its_worker_is_executed_once(
    penstock: "Penstock", tmp_path: "Path", scheme: str, method: str
) -> None:
    (tmp_path / "program.py").write_text(APP)
    run = penstock(app="program:app", workers=WORKERS, scheme=scheme, restart=LENIENT)
    wire = run.connect()
    wire.send(request(method, "/die"))
    assert wire.is_ended()
    run.until(lambda: run.metric("penstock_child_exits_total", status="7") == 1)
    run.until(lambda: all_are_up(run))
    assert run.connect().ask(request("GET")).body == b"well"
    assert len(executed(tmp_path)) == 1


def test_a_lone_worker_is_ended_once_and_its_successor_once(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    (tmp_path / "program.py").write_text(APP)
    run = penstock(app="program:app", workers=1, restart=LENIENT, timeouts=PATIENT)
    assert run.connect().ask(request("GET", "/die")).status == 502
    assert len(executed(tmp_path)) == 2
    run.until(lambda: all_are_up(run))
    assert run.connect().ask(request("GET")).status == 200


def test_while_one_client_keeps_ending_workers_others_are_served(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    (tmp_path / "program.py").write_text(APP)
    run = penstock(
        app="program:app", workers=WORKERS, restart=LENIENT, timeouts=PATIENT,
        retries={"min_per_second": 1000},
    )  # fmt: skip
    deadly, harmless = run.connect(), run.connect()
    for _ in range(8):
        assert deadly.ask(request("GET", "/die")).status == 502
        # Before that a process that is ending may still take a request, and two may take the same.
        run.until(
            lambda: run.metric("penstock_child_exits_total", status="7") == len(executed(tmp_path))
        )
        assert {harmless.ask(request("GET")).status for _ in range(10)} == {200}
    assert len(executed(tmp_path)) <= 16


# -- workers that answer badly, or not at all


def counted(
    origin: "Worker", answer: Callable[["Wire"], object], count: int
) -> tuple[list[int], list[str]]:
    """Upstreams with that answer: which of them were asked, and the words of their addresses."""
    asked: list[int] = []

    def numbered(number: int) -> Callable[["Wire"], object]:
        def serve(wire: "Wire") -> None:
            wire.head()
            asked.append(number)
            answer(wire)

        return serve

    words = [word for n in range(count) for word in ("--to", origin(numbered(n)).address)]
    return asked, words


@pytest.mark.parametrize(("upstreams", "attempts", "times"), [(4, 2, 2), (4, 1, 1), (1, 2, 1)])
def test_an_answer_that_is_not_http_is_502_without_waiting(
    penstock: "Penstock", origin: "Worker", upstreams: int, attempts: int, times: int
) -> None:
    asked, words = counted(origin, lambda wire: wire.send(GARBAGE), upstreams)
    run = penstock(*words, health=SELDOM, timeouts=PATIENT, retries={"attempts": attempts})
    assert run.connect().ask(request("GET")).status == 502
    assert len(set(asked)) == len(asked) == times
    reason = "GET / from 127.0.0.1: 502 the worker's answer is not HTTP"
    run.until(lambda: reason in run.err)
    assert run.err.count("; tried again on web/") == times - 1


@pytest.mark.parametrize("rude", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_what_upstreams_read_and_drop_on_kept_connections_is_sent_to_two_of_them(
    penstock: "Penstock", origin: "Worker", method: str, *, rude: bool
) -> None:
    dropped: Counter[int] = Counter()

    def moody(number: int) -> Callable[["Wire"], object]:
        def serve(wire: "Wire") -> None:
            while b"/drop" not in (head := wire.head()):
                wire.send(OK)
            if head.startswith(b"PUT"):
                wire.exactly(4)
            dropped[number] += 1
            if rude:
                wire.reset()

        return serve

    words = [word for n in range(4) for word in ("--to", origin(moody(n)).address)]
    run = penstock(*words, health=SELDOM, ejection=NO_EJECTION, timeouts=PATIENT)
    wire = run.connect()
    # Each has a kept connection.
    assert {wire.ask(request("GET")).status for _ in range(8)} == {200}
    assert wire.ask(request(method, "/drop")).status == 502
    assert sorted(dropped.values()) == [1, 1]


# -- what is tried again


def error(status: int) -> bytes:
    return b"HTTP/1.1 %d Sorry\r\nContent-Length: 3\r\nX-From: worker\r\n\r\nbad" % status


def refuses(_wire: "Wire") -> None:
    raise AssertionError("it does not listen")


def resets(wire: "Wire") -> None:
    wire.reset()


def is_silent(wire: "Wire") -> None:
    wire.rest()


KINDS: dict[str, tuple[Callable[["Wire"], object], int]] = {
    "connect": (refuses, 502),
    "reset": (resets, 502),
    "timeout": (is_silent, 504),
    "502": (lambda wire: wire.send(error(502)), 502),
    "503": (lambda wire: wire.send(error(503)), 503),
    "504": (lambda wire: wire.send(error(504)), 504),
}
"""What a worker does, and what its client gets if that is not tried again."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", [True, False], ids=["named", "not named"])
def test_only_the_failures_that_are_named_are_tried_again(
    penstock: "Penstock", origin: "Worker", kind: str, *, on: bool
) -> None:
    answer, status = KINDS[kind]

    def bad(wire: "Wire") -> None:
        wire.head()
        answer(wire)

    def good(wire: "Wire") -> None:
        while wire.head():
            wire.send(OK)

    first, second = origin(bad), origin(good)
    run = penstock(
        "--to", first.address, "--to", second.address,
        health=SELDOM, ejection=NO_EJECTION, timeouts={**PATIENT, "response": "300ms"},
        retries={"on": [kind] if on else [other for other in KINDS if other != kind]},
    )  # fmt: skip
    if kind == "connect":
        first.away()
    answers = [run.connect().ask(request("GET")) for _ in range(2)]
    if on:
        assert [answer.status for answer in answers] == [200, 200]
        run.until(lambda: "; tried again on web/1" in run.err)
    else:
        assert sorted(answer.status for answer in answers) == [200, status]
        worst = max(answers, key=lambda one: one.status)
        assert worst["X-From"] == ("worker" if kind.isdigit() else None)
    # The retry has taken the turn of the good one, so the second request needs one, too.
    assert run.metric("penstock_retries_total") == 2 * on


def test_an_error_of_the_last_worker_that_may_be_asked_is_passed_on_as_it_is(
    penstock: "Penstock", origin: "Worker"
) -> None:
    asked, words = counted(origin, lambda wire: wire.send(error(503)), 4)
    run = penstock(*words, health=SELDOM, ejection=NO_EJECTION, retries={"on": ["503"]})
    answer = run.connect().ask(request("GET"))
    assert (answer.status, answer["X-From"], answer.body) == (503, "worker", b"bad")
    assert len(asked) == 2
    answer = run.connect().ask(request("POST"))
    assert (answer.status, answer["X-From"]) == (503, "worker")
    assert len(asked) == 3


def test_an_error_of_the_only_worker_is_passed_on_as_it_is(
    penstock: "Penstock", origin: "Worker"
) -> None:
    asked, words = counted(origin, lambda wire: wire.send(error(503)), 1)
    run = penstock(*words, health=SELDOM, timeouts=PATIENT, retries={"on": ["503"]})
    assert run.connect().ask(request("GET"))["X-From"] == "worker"
    assert len(asked) == 1
    assert run.metric("penstock_retries_total") == 0
