"""A worker's failure is reported once, and retried only where that is safe.

A client that disconnects ends its exchange with the worker. Time-outs are short here. They are
proved by their effects, never by a clock.
"""

import socket
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SELDOM = {"interval": "1h"}
"""Health checks that notice nothing while a test lasts: it is the traffic that finds out."""
QUEUER = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


def good(wire: "Wire") -> None:
    while wire.head():
        wire.send(OK)


def silent(wire: "Wire") -> None:
    """Reads everything and never answers."""
    wire.rest()


def ended(run: "Cluster") -> list[tuple[int, str]]:
    return [(line["status"], line["termination"]) for line in run.log]


# -- clients that leave


@pytest.mark.parametrize("rude", [False, True], ids=["closes", "resets"])
def test_a_client_that_disconnects_ends_the_exchange_with_the_worker(
    penstock: "Penstock", origin: "Worker", rude: bool
) -> None:
    asked, left = threading.Event(), threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        asked.set()
        if wire.is_ended():
            left.set()

    # Without that key its end is taken for that of its side, until it is known to have left.
    run = penstock("--to", origin(answer).address, abort_on_close=not rude)
    wire = run.connect()
    wire.send(GET)
    assert asked.wait(60)
    if rude:
        wire.reset()
    else:
        wire.close()
    assert left.wait(60)
    run.until(lambda: ended(run) == [(0, "client_gone")])
    assert run.workers()[0]["active"] == 0


def test_a_client_that_disconnects_during_an_answer_ends_its_sending(
    penstock: "Penstock", origin: "Worker"
) -> None:
    left = threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                wire.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            left.set()

    wire = penstock("--to", origin(answer).address).connect()
    wire.send(GET)
    wire.exactly(1000)
    wire.close()
    assert left.wait(60)


# -- time-outs


def test_a_worker_that_does_not_answer_is_504(penstock: "Penstock", origin: "Worker") -> None:
    run = penstock("--to", origin(silent).address, timeouts={"response": "300ms"})
    wire = run.connect()
    answer = wire.ask(GET)
    assert (answer.status, answer.body) == (504, b"the worker took too long\n")
    # Nothing was lost between us and the client: it may go on.
    assert wire.ask(GET).status == 504
    run.until(lambda: ended(run) == [(504, "response_timeout")] * 2)
    reason = "web/0: GET / from 127.0.0.1: 504 the worker took too long"
    run.until(lambda: reason in run.err)


def test_a_request_is_tried_with_no_more_than_two_workers_that_do_not_answer(
    penstock: "Penstock", origin: "Worker"
) -> None:
    asked: list[bytes] = []

    def answer(wire: "Wire") -> None:
        asked.append(wire.head())
        wire.rest()

    words = [word for _ in range(4) for word in ("--to", origin(answer).address)]
    retries = {"min_per_second": 1000, "on": ["timeout"]}
    run = penstock(*words, health=SELDOM, timeouts={"response": "200ms"}, retries=retries)
    assert run.connect().ask(GET).status == 504
    assert len(asked) == 2
    assert run.metric("penstock_retries_total") == 1


def test_a_worker_that_does_not_accept_is_504(penstock: "Penstock") -> None:
    with ExitStack() as sockets:
        worker = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8))
        host, port = worker.getsockname()
        run = penstock(
            "--to", f"{host}:{port}",
            health=SELDOM, timeouts={"connect": "300ms", "queue": "300ms"},
        )  # fmt: skip
        # Its first check was good. From now on its queue is full, and the kernel drops the rest.
        worker.listen(0)
        for _ in range(16):
            sockets.enter_context(socket.socket(type=QUEUER)).connect_ex((host, port))
        answer = run.connect().ask(GET)
        assert (answer.status, answer.body) == (504, b"connecting to a worker took too long\n")


def test_an_answer_that_stops_arriving_is_cut_off(penstock: "Penstock", origin: "Worker") -> None:
    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        wire.rest()

    run = penstock("--to", origin(answer).address, timeouts={"body": "300ms"})
    wire = run.connect()
    wire.send(GET)
    assert wire.head().startswith(b"HTTP/1.1 200 ")
    assert wire.rest() == b"abc"
    run.until(lambda: ended(run) == [(200, "response_timeout")])


def test_a_request_body_that_stops_is_408(penstock: "Penstock", origin: "Worker") -> None:
    run = penstock("--to", origin(silent).address, timeouts={"body": "300ms"})
    wire = run.connect()
    answer = wire.ask(POST[:-1])
    assert (answer.status, answer["Connection"]) == (408, "close")
    assert wire.is_ended()
    run.until(lambda: ended(run) == [(408, "body_timeout")])


def test_an_exchange_has_a_total_time_limit(penstock: "Penstock", origin: "Worker") -> None:
    run = penstock("--to", origin(silent).address, timeouts={"total": "300ms"})
    assert run.connect().ask(GET).status == 504
    run.until(lambda: ended(run) == [(504, "total_timeout")])


def test_an_idle_connection_is_closed_without_a_response(
    penstock: "Penstock", origin: "Worker"
) -> None:
    run = penstock("--to", origin(good).address, timeouts={"keepalive": "300ms"})
    wire = run.connect()
    assert wire.ask(GET).status == 200
    assert wire.is_ended()
    assert len(run.log) == 1


# -- workers that refuse, reset and cut


def test_a_request_to_a_worker_that_refuses_is_served_by_another(
    penstock: "Penstock", origin: "Worker"
) -> None:
    gone, there = origin(good), origin(good)
    run = penstock("--to", gone.address, "--to", there.address, health=SELDOM)
    gone.away()
    # No byte was sent, so this is true of a POST as well.
    wire = run.connect()
    assert [wire.ask(POST).status for _ in range(20)] == [200] * 20
    reason = "web/0: POST / from 127.0.0.1: cannot connect to a worker (Connection refused)"
    run.until(lambda: f"{reason}; tried again on web/1" in run.err)
    run.until(lambda: len(run.log) == 20)
    assert {line["worker"] for line in run.log} == {"web/1"}
    assert sum(line["retries"] for line in run.log) == run.metric("penstock_retries_total") == 5
    assert run.workers()[0]["health"] == "ejected"


def test_when_every_worker_refuses_the_response_is_502(
    penstock: "Penstock", origin: "Worker"
) -> None:
    workers = [origin(good), origin(good)]
    run = penstock(
        *(word for worker in workers for word in ("--to", worker.address)),
        health=SELDOM, timeouts={"queue": "300ms"},
    )  # fmt: skip
    for worker in workers:
        worker.away()
    answer = run.connect().ask(GET)
    assert (answer.status, answer.body) == (502, b"cannot connect to a worker\n")
    run.until(lambda: ended(run) == [(502, "connect_failed")])


def test_a_connection_that_its_worker_closed_while_idle_causes_no_error(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def once(wire: "Wire") -> None:
        wire.head()
        # It closes without announcing it.
        wire.send(OK)

    run = penstock("--to", origin(once).address, health=SELDOM)
    wire = run.connect()
    assert [wire.ask(GET).status for _ in range(200)] == [200] * 200


def test_a_request_whose_reused_connection_was_closed_is_sent_again(
    penstock: "Penstock", origin: "Worker"
) -> None:
    served = Counter[int]()

    def moody(wire: "Wire") -> None:
        wire.head()
        wire.send(OK)
        # It takes the second request, and only then disconnects without an answer.
        wire.head()
        served["dropped"] += 1  # type: ignore[index]
        wire.reset()

    run = penstock("--to", origin(moody).address, health=SELDOM)
    wire = run.connect()
    assert [wire.ask(GET).status for _ in range(20)] == [200] * 20
    assert run.metric("penstock_ejections_total") == 0


def test_a_post_that_was_sent_is_never_repeated(penstock: "Penstock", origin: "Worker") -> None:
    got: list[bytes] = []

    def answer(wire: "Wire") -> None:
        wire.head()
        got.append(wire.exactly(4))
        wire.reset()

    workers = [origin(answer), origin(answer)]
    run = penstock("--to", workers[0].address, "--to", workers[1].address, health=SELDOM)
    answered = run.connect().ask(POST)
    assert (answered.status, answered.body) == (502, b"the worker broke off\n")
    assert got == [b"body"]
    run.until(lambda: ended(run) == [(502, "worker_reset")])
    assert run.log[0]["retries"] == 0


def test_a_get_that_was_sent_is_tried_with_the_next_worker(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        wire.head()
        wire.reset()

    run = penstock("--to", origin(answer).address, "--to", origin(good).address, health=SELDOM)
    wire = run.connect()
    assert [wire.ask(GET).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("then", ["closes", "waits", "reads on"])
def test_an_answer_before_the_end_of_the_request_is_forwarded(
    penstock: "Penstock", origin: "Worker", then: str
) -> None:
    size = 16 << 20
    over = threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n")
        if then == "waits":
            over.wait(60)
        elif then == "reads on":
            wire.exactly(size)
        # What was sent and not read makes this close a reset.

    def send(wire: "Wire") -> None:
        # Sent in vain, when the answer comes first.
        with suppress(OSError):
            wire.send(POST.replace(b"4", b"%d" % size), b"x" * (size - 4))

    run = penstock("--to", origin(answer).address)
    answers = []
    for _ in range(20):
        wire = run.connect()
        sender = threading.Thread(target=send, args=(wire,))
        sender.start()
        answers.append(wire.answer().status)
        wire.reset()
        sender.join()
    over.set()
    assert answers == [413] * 20


CUT = {
    "content-length": b"Content-Length: 10\r\n\r\nabc",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
}


@pytest.mark.parametrize("framing", CUT)
def test_a_cut_answer_looks_cut_to_the_client(
    penstock: "Penstock", origin: "Worker", framing: str
) -> None:
    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n" + CUT[framing])

    run = penstock("--to", origin(answer).address)
    wire = run.connect()
    wire.send(GET)
    # The end comes, and it is not the end that the framing promised.
    with pytest.raises(EOFError):
        wire.answer()
    run.until(lambda: ended(run) == [(200, "worker_closed")])


@pytest.mark.parametrize("framing", CUT)
def test_a_cut_answer_that_would_end_with_its_connection_is_reset(
    penstock: "Penstock", origin: "Worker", framing: str
) -> None:
    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\n" + CUT[framing])

    wire = penstock("--to", origin(answer).address).connect()
    wire.send(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        wire.rest()


NOT_HTTP = {
    "noise": b"\x00\x01\x02\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
    "an upgrade nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("reply", NOT_HTTP.values(), ids=NOT_HTTP)
def test_an_answer_that_is_not_http_is_502(
    penstock: "Penstock", origin: "Worker", reply: bytes
) -> None:
    def answer(wire: "Wire") -> None:
        wire.head()
        wire.send(reply)
        wire.rest()

    run = penstock("--to", origin(answer).address)
    answered = run.connect().ask(GET)
    assert (answered.status, answered.body) == (502, b"the worker's answer is not HTTP\n")
    run.until(lambda: ended(run) == [(502, "bad_response")])
