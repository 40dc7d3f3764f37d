"""An exception that nobody caught is logged once, counted and told; the worker goes on.

With `on_uncaught = "retire"` it also asks for a successor, and serves until it gets TERM.

Covers `runtime/uncaught` and `runtime/process_hooks`.
"""

import asyncio
import http.client
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from penstock_worker import contract
from penstock_worker.channel import framing
from penstock_worker.runtime.uncaught import (
    UncaughtExceptions,
    is_peer_gone,
    is_reason_to_retire,
    place_of,
)
from penstock_worker.telemetry.counters import RequestCounters

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 30.0
RETIRE = {"PENSTOCK_ON_UNCAUGHT": "retire"}
SERIES = "penstock_worker_uncaught_exceptions_total"


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


@pytest.mark.parametrize(
    ("kind", "where", "error"),
    [
        ("callback", "callback <function broken", "RuntimeError: nobody catches this"),
        ("task", "(fails)", "RuntimeError: nobody catches this"),
        ("thread", 'thread "', "RuntimeError: nobody catches this"),
        ("finalizer", "Finalized.__del__", "RuntimeError: nobody catches this"),
        ("unspeakable", 'task "unspeakable" (unspeakable)', "Unspeakable"),
        ("group", 'task "group" (group)', "ExceptionGroup: both (2 sub-exceptions)"),
        ("endless", "callback", "RecursionError"),
        ("gone", "callback", "ConnectionResetError: the client left"),
    ],
)
def test_an_exception_that_nobody_caught_is_logged_counted_and_told_and_the_worker_goes_on(
    serve: "Serve", kind: str, where: str, error: str
) -> None:
    served = serve("retires:app", PENSTOCK_SLOT="2")
    port = served.port()
    assert get(port, f"/throw/{kind}") == (200, kind)
    message = served.receive()
    assert message["cmd"] == contract.UNCAUGHT
    assert message["reason"].startswith(error)
    assert where in message["reason"]
    assert get(port) == (200, "hello")
    assert served.stats()["series"] == {SERIES: {"2": 1}}
    log = served.stderr()
    assert log.count("an exception that nobody caught, in ") == 1
    assert where in log
    assert "Traceback (most recent call last)" in log
    served.signal(signal.SIGTERM)
    assert set(served.commands()) == {contract.STATS}, "it did not retire"
    assert served.exit_status() == 0


def test_a_flood_of_exceptions_is_counted_to_the_last_and_logged_a_few_times(
    serve: "Serve",
) -> None:
    served = serve("retires:app", PENSTOCK_SLOT="0")
    port = served.port()
    assert get(port, "/flood?n=20000") == (200, "flood")
    assert served.receive()["cmd"] == contract.UNCAUGHT
    assert get(port) == (200, "hello")
    served.signal(signal.SIGTERM)
    told = [message for message in served.messages() if message["cmd"] == contract.STATS]
    assert told[-1]["metrics"]["series"] == {SERIES: {"0": 20_000}}
    assert served.exit_status() == 0
    log = served.stderr()
    assert len(log) < 50_000
    assert "Traceback" in log
    shown = log.count("RuntimeError: nobody catches this")
    assert f"{20_000 - shown} more like RuntimeError" in log or "more like it before" in log


@pytest.mark.parametrize("kind", ["callback", "task", "thread"])
def test_where_it_retires_it_serves_until_term(serve: "Serve", kind: str) -> None:
    served = serve("retires:app", **RETIRE)
    port = served.port()
    assert get(port, f"/throw/{kind}") == (200, kind)
    assert served.receive()["cmd"] == contract.UNCAUGHT
    message = served.receive()
    assert message["cmd"] == contract.RETIRE
    assert message["reason"].startswith("RuntimeError: nobody catches this, in ")
    assert get(port) == (200, "hello")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert served.stderr().count("Traceback") == 1, "it is logged by the worker, and once"


@pytest.mark.parametrize("kind", ["gone", "finalizer"])
def test_not_every_exception_is_a_reason_to_retire(serve: "Serve", kind: str) -> None:
    served = serve("retires:app", **RETIRE)
    get(served.port(), f"/throw/{kind}")
    assert served.receive()["cmd"] == contract.UNCAUGHT
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


@pytest.mark.parametrize("path", ["/retire", "/retire?thread"])
def test_a_program_may_ask_for_a_successor(serve: "Serve", path: str) -> None:
    served = serve("retires:app")
    port = served.port()
    assert get(port, path) == (200, "retired")
    assert served.receive() == {"cmd": contract.RETIRE, "reason": "had enough", "traceback": ""}
    assert get(port) == (200, "hello")


def test_a_successor_is_asked_for_once(serve: "Serve") -> None:
    served = serve("retires:app", **RETIRE)
    port = served.port()
    get(port, "/retire")
    get(port, "/throw/callback")
    assert served.receive()["reason"] == "had enough"
    assert served.receive()["cmd"] == contract.UNCAUGHT
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


def test_a_request_that_fails_is_its_servers_to_log(serve: "Serve") -> None:
    served = serve("retires:app")
    assert get(served.port(), "/throw/handler")[0] == 500
    until(lambda: "nobody catches this" in served.stderr())
    assert "an exception that nobody caught" not in served.stderr()
    assert served.stats()["series"][SERIES] == {"": 0}


def test_a_traceback_is_bounded(serve: "Serve") -> None:
    served = serve("retires:app")
    get(served.port(), "/throw/deep")
    assert served.receive()["cmd"] == contract.UNCAUGHT
    assert len(served.stderr()) <= 17 << 10
    assert served.stderr().endswith("RuntimeError: nobody catches this\n")


def test_without_a_supervisor_it_is_logged_and_the_worker_goes_on(serve: "Serve") -> None:
    served = serve("retires:app", supervised=False)
    until(lambda: "\n" in served.stderr())
    (port,) = served.listening()
    assert get(port, "/throw/callback")[0] == 200
    until(lambda: "nobody catches this" in served.stderr())
    assert get(port) == (200, "hello")


@pytest.mark.parametrize(
    ("path", "keys", "status"), [("/throw/callback", RETIRE, 1), ("/retire", {}, 0)]
)
def test_without_a_supervisor_a_worker_that_retires_exits(
    serve: "Serve", path: str, keys: dict[str, str], status: int
) -> None:
    served = serve("retires:app", supervised=False, **keys)
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


GONE = ExceptionGroup("x", [BrokenPipeError(), ExceptionGroup("y", [ConnectionResetError()])])
MIXED = ExceptionGroup("x", [BrokenPipeError(), ValueError()])


@pytest.mark.parametrize(
    ("context", "retires"),
    [
        ({"exception": ValueError(), "handle": 1}, True),
        ({"exception": OSError(5, "x"), "future": 1}, True),
        ({"exception": ValueError(), "task": 1}, True),
        ({"exception": MIXED, "task": 1}, True),
        ({"exception": GONE, "task": 1}, False),
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
def test_only_exceptions_in_the_programs_callbacks_and_tasks_are_a_reason_to_retire(
    context: dict[str, Any], retires: bool
) -> None:
    assert is_reason_to_retire(context) is retires


def test_a_group_says_that_a_peer_is_gone_if_all_of_it_does() -> None:
    assert is_peer_gone(GONE)
    assert not is_peer_gone(MIXED)


class Reports:
    """`UncaughtExceptions` on a loop of a test's own, without the hooks of the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.counters = RequestCounters()
        self.logged: list[str] = []
        self.retired: list[str] = []
        self.stderr: list[str] = []
        self.uncaught = UncaughtExceptions(
            loop, self.counters, self.stderr.append, self.logged.append, self.retired.append
        )
        loop.set_exception_handler(self.uncaught._from_loop)

    def report(self, error: BaseException, **context: Any) -> None:
        self.loop.call_exception_handler({"exception": error, "handle": 1, **context})

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def reports() -> Iterator[Reports]:
    loop = asyncio.new_event_loop()
    yield Reports(loop)
    loop.close()


def test_a_log_handler_that_raises_costs_nothing_but_its_own_lines(reports: Reports) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError("no log")

    handler = Broken()
    logger = logging.getLogger("penstock.worker")
    logger.addHandler(handler)
    try:
        reports.report(ValueError("first"))
    finally:
        logger.removeHandler(handler)
    reports.turn()
    assert "it could not be logged: ZeroDivisionError" in reports.stderr[0]
    assert "ValueError: first" in reports.stderr[0]
    assert reports.counters.uncaught == 1


def test_a_program_that_disables_loggers_does_not_silence_it(reports: Reports) -> None:
    logger = logging.getLogger("penstock.worker")
    logger.disabled = True
    try:
        reports.report(ValueError("heard"))
    finally:
        logger.disabled = False
    assert "ValueError: heard" in reports.stderr[0]


def test_a_report_from_within_a_report_is_logged_after_it(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    # As when a task is collected in the middle of logging another one.
    class Nested(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "outer" in (record.exc_text or ""):
                reports.report(KeyError("inner"))

    handler = Nested()
    logger = logging.getLogger("penstock.worker")
    logger.addHandler(handler)
    try:
        reports.report(ValueError("outer"))
    finally:
        logger.removeHandler(handler)
    texts = [record.exc_text or "" for record in caplog.records]
    assert ["outer" in texts[0], "inner" in texts[1], len(texts)] == [True, True, 2]
    assert reports.counters.uncaught == 2


def test_reports_never_wait_for_one_that_is_being_logged(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Blocked(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            assert go_on.wait(DEADLINE_S)

    handler = Blocked()
    logger = logging.getLogger("penstock.worker")
    logger.addHandler(handler)
    try:
        first = threading.Thread(target=reports.report, args=(ValueError("slow"),))
        first.start()
        assert entered.wait(DEADLINE_S)
        for _ in range(1000):
            reports.report(KeyError("meanwhile"))
        assert reports.counters.uncaught == 1001, "counted at once"
        go_on.set()
        first.join(DEADLINE_S)
    finally:
        go_on.set()
        logger.removeHandler(handler)
    reports.uncaught.summarize()
    assert len(reports.uncaught._waiting) == 0
    assert [record.exc_text for record in caplog.records if "KeyError" in (record.exc_text or "")]
    assert "more like KeyError" in caplog.text
    assert "at other places" in caplog.text, "those for which there was no room"


def test_reports_after_the_loop_has_closed_are_still_logged(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    reports.loop.close()
    reports.uncaught._from_thread(
        threading.ExceptHookArgs((ValueError, ValueError("late"), None, None))
    )
    assert "late" in (caplog.records[0].exc_text or "")


@pytest.mark.parametrize(
    ("found", "message", "place"),
    [
        (until, None, "until"),
        (object(), None, "object"),
        (None, "Exception ignored while calling deallocator <function A.f at 0x7f>", "A.f"),
        (None, None, "the interpreter"),
    ],
)  # fmt: skip
def test_what_python_ignores_is_named_by_an_object_or_as_since_3_14_in_a_message(
    found: object, message: str | None, place: str
) -> None:
    ignored: Any = SimpleNamespace(object=found, err_msg=message)
    assert place_of(ignored) == place
