"""After an uncaught exception a worker asks for a successor, and serves until it gets TERM."""

import http.client
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from penstock_worker import contract
from penstock_worker.channel import framing
from penstock_worker.runtime.uncaught import is_uncaught, reason, traceback_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 30.0


def until(condition: "Callable[[], bool]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def get(port: int, path: str = "/") -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with closing(client):
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("kind", ["callback", "task", "thread"])
def test_an_uncaught_exception_asks_for_a_successor_and_the_worker_serves_until_term(
    serve: "Serve", kind: str
) -> None:
    served = serve("retires:app")
    port = served.port()
    assert get(port, f"/throw/{kind}") == (200, kind)
    message = served.receive()
    assert (message["cmd"], message["reason"]) == (
        contract.RETIRE, "RuntimeError: nobody catches this"
    )  # fmt: skip
    assert message["traceback"].startswith("Traceback ")
    assert "in broken" in message["traceback"]
    assert get(port) == (200, "hello")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert served.stderr() == "", "the traceback is told once, over the channel"


@pytest.mark.parametrize("path", ["/retire", "/retire?thread"])
def test_a_program_may_ask_for_a_successor(serve: "Serve", path: str) -> None:
    served = serve("retires:app")
    port = served.port()
    assert get(port, path) == (200, "retired")
    assert served.receive() == {"cmd": contract.RETIRE, "reason": "had enough", "traceback": ""}
    assert get(port) == (200, "hello")


def test_a_successor_is_asked_for_once_and_later_exceptions_go_to_stderr(serve: "Serve") -> None:
    served = serve("retires:app")
    port = served.port()
    get(port, "/retire")
    get(port, "/throw/callback")
    assert served.receive()["reason"] == "had enough"
    until(lambda: "nobody catches this" in served.stderr())
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


@pytest.mark.parametrize(
    ("kind", "status", "logged"),
    [("handler", 500, "nobody catches this"), ("gone", 200, "the client left")],
)
def test_a_request_that_fails_or_a_client_that_hangs_up_does_not_retire_the_worker(
    serve: "Serve", kind: str, status: int, logged: str
) -> None:
    served = serve("retires:app")
    assert get(served.port(), f"/throw/{kind}")[0] == status
    until(lambda: logged in served.stderr())
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


def test_a_traceback_is_bounded(serve: "Serve") -> None:
    served = serve("retires:app")
    get(served.port(), "/throw/deep")
    traceback = served.receive()["traceback"]
    assert len(traceback) <= 16 << 10
    assert traceback.endswith("RuntimeError: nobody catches this\n")


@pytest.mark.parametrize(("path", "status"), [("/throw/callback", 1), ("/retire", 0)])
def test_without_a_supervisor_a_worker_that_retires_exits(
    serve: "Serve", path: str, status: int
) -> None:
    served = serve("retires:app", supervised=False)
    until(lambda: "\n" in served.stderr())
    (port,) = served.listening()
    assert get(port, path)[0] == 200
    assert served.exit_status() == status
    assert ("nobody catches this" in served.stderr()) == bool(status)


def test_the_program_gets_its_own_messages_and_no_internal_ones(serve: "Serve") -> None:
    served = serve("retires:app").ready()
    for message in (5, None, "x", ["y"], {"cmd": "stats"}, {"cmd": 7}):
        served.send({"cmd": contract.INTERNAL + "FUTURE"})
        # Node keeps these to itself as well.
        served.send({"cmd": "NODE_OTHER"})
        served.link.sendall(framing.encode(message))
        assert served.receive() == {"heard": message, "handle": False}


@pytest.mark.parametrize(
    ("context", "uncaught"),
    [
        ({"exception": ValueError(), "handle": 1}, True),
        ({"exception": OSError(5, "x"), "future": 1}, True),
        ({"exception": ValueError(), "task": 1}, True),
        ({"exception": ConnectionResetError(), "task": 1}, False),
        ({"exception": BrokenPipeError(), "handle": 1}, False),
        ({"exception": OSError(), "transport": 1}, False),
        ({"exception": ValueError(), "transport": 1, "protocol": 1}, False),
        ({"exception": ValueError(), "protocol": 1, "handle": 1}, False),
        ({"exception": KeyboardInterrupt(), "handle": 1}, False),
        ({"exception": ValueError()}, False),
        ({"message": "a warning", "task": 1}, False),
    ],
)
def test_only_exceptions_in_the_programs_callbacks_and_tasks_count_as_uncaught(
    context: dict[str, Any], uncaught: bool
) -> None:
    assert is_uncaught(context) is uncaught


def test_a_reason_is_one_bounded_line() -> None:
    assert reason(ValueError("a\n b")) == "ValueError: a b"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 9999))) == 500


def test_a_long_traceback_keeps_both_ends() -> None:
    text = traceback_text(ValueError("a" + "x" * 99999 + "z"))
    assert text.startswith("ValueError: a")
    assert text.endswith("z\n")
    assert len(text) <= 16 << 10
