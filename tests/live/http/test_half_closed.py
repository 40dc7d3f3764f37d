"""A client that ends its side is answered, and one that has closed the connection is found."""

import socket
import threading
from typing import TYPE_CHECKING

from tests.support.live.heads import request

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.wire import Wire


def test_all_that_was_asked_before_the_end_is_answered(penstock: "Penstock") -> None:
    run = penstock("penstock_worker.demo:app", workers=1)
    wire = run.connect()
    wire.send(
        request("/sleep?s=0.3"),
        request("/echo", "Content-Length: 4", method="POST", body=b"last"),
    )
    wire.finish()
    assert wire.answer().body.startswith(b"slept")
    answer = wire.answer()
    assert (answer.body, answer["Connection"]) == (b"last", "close")
    assert wire.is_ended()
    run.until(lambda: [line["termination"] for line in run.log] == ["ok", "ok"])


def test_a_client_that_has_closed_the_connection_is_found_although_nothing_is_written(
    penstock: "Penstock", origin: "Worker"
) -> None:
    asked, left = threading.Event(), threading.Event()

    def answer(wire: "Wire") -> None:
        if wire.head():
            asked.set()
            if wire.is_ended():
                left.set()

    run = penstock("--to", origin(answer).address)
    wire = run.connect()
    # The kernel forgets a connection that was closed after a second, not after a minute.
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
    wire.send(request("/"))
    assert asked.wait(60)
    wire.close()
    assert left.wait(60)
    run.until(lambda: [line["termination"] for line in run.log] == ["client_gone"])
