"""Bodies arrive whole in every framing, and so do interim responses and trailers.

The tests compare the bytes on the wire at both ends.
"""

import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.live.heads import OK, always, fields_of, request

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
def test_a_body_of_known_length_is_the_same_both_ways(demo: "Cluster", size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    wire = demo.connect()
    head = request("/echo", f"Content-Length: {size}", method="POST")
    sender = threading.Thread(target=wire.send, args=(head, body[:size]))
    sender.start()
    answer = wire.answer()
    sender.join()
    assert answer["Content-Length"] == str(size)
    assert answer.body == body[:size]


def test_a_chunked_body_is_the_same_both_ways(demo: "Cluster") -> None:
    pieces = [bytes([n % 256]) * (n * 37 % 5000 + 1) for n in range(200)]
    wire = demo.connect()

    def send() -> None:
        wire.send(request("/echo", "Transfer-Encoding: chunked", method="POST"))
        for piece in pieces:
            wire.send(b"%X;ext=1\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"000\r\n\r\n")

    sender = threading.Thread(target=send)
    sender.start()
    answer = wire.answer()
    sender.join()
    assert answer["Transfer-Encoding"] == "chunked"
    assert answer.body == b"".join(pieces)


def test_an_answer_without_a_length_is_framed_for_the_version_of_its_client(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def until_close(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.0 200 OK\r\nX-Old: yes\r\n\r\n", b"some", b"thing")

    run = penstock("--to", origin(until_close).address)
    wire = run.connect()
    answer = wire.ask(request())
    assert (answer.version, answer["Transfer-Encoding"]) == (b"HTTP/1.1", "chunked")
    assert answer.body == b"something"
    # The proxy framed it itself, so the client's connection outlives the worker's.
    assert wire.ask(request()).body == b"something"
    wire = run.connect()
    answer = wire.ask(request("/", "Connection: keep-alive", minor=0))
    assert (answer["Transfer-Encoding"], answer["Connection"]) == (None, "close")
    assert answer.body == b"something"


def test_a_chunked_answer_reaches_an_http_1_0_client_without_chunks(
    penstock: "Penstock", origin: "Worker"
) -> None:
    reply = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n"
    )
    wire = penstock("--to", origin(always(reply)).address).connect()
    answer = wire.ask(request(minor=0))
    assert (answer["Transfer-Encoding"], answer.body) == (None, b"something")


def test_answers_without_a_body_have_none_and_keep_the_connection(
    penstock: "Penstock", origin: "Worker"
) -> None:
    replies = {
        b"/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        b"/304": b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n',
        b"/head": b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n",
        b"/head-chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"/empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    }
    met = []

    def answer(wire: "Wire") -> None:
        met.append(wire)
        while True:
            wire.send(replies[wire.head().split(b" ")[1]])

    run = penstock("--to", origin(answer).address, health={"interval": "1h"})
    checks = len(met)
    wire = run.connect()
    for _ in range(2):
        assert wire.ask(request("/204")).status == 204
        assert wire.ask(request("/304"))["Content-Length"] == "500"
        assert wire.ask(request("/head", method="HEAD"), method="HEAD")["Content-Length"] == "700"
        assert wire.ask(request("/head-chunked", method="HEAD"), method="HEAD").status == 200
        assert wire.ask(request("/empty")).body == b""
    # Nor was the worker's connection lost on the way, but for the two that announced chunks:
    # such a one may send the last of them after all.
    assert len(met) - checks == 3


def test_a_client_that_waits_for_100_continue_gets_it_before_it_sends(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        while True:
            assert fields_of(wire.head())["expect"] == "100-continue"
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert wire.exactly(4) == b"body"
            wire.send(OK)

    wire = penstock("--to", origin(answer).address).connect()
    for _ in range(2):
        wire.send(request("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
        assert wire.answer().status == 100
        assert wire.ask(b"body").body == b"ok"


def test_a_worker_may_answer_instead_of_100_continue(
    penstock: "Penstock", origin: "Worker"
) -> None:
    reply = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n"
    wire = penstock("--to", origin(always(reply)).address).connect()
    wire.send(request("/", "Content-Length: 9999999", "Expect: 100-continue", method="POST"))
    answer = wire.answer()
    # The client may send its body or not: what comes next on this connection is anybody's guess.
    assert (answer.status, answer["Connection"]) == (413, "close")


def test_trailers_are_forwarded_both_ways(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[tuple[bytes, bytes]] = []

    def answer(wire: "Wire") -> None:
        while True:
            wire.head()
            seen.append(wire.chunks())
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
            wire.send(b"2\r\nok\r\n0\r\nX-Sum: 42\r\nSet-Cookie: a=b\r\n\r\n")

    wire = penstock("--to", origin(answer).address).connect()
    body = b"2\r\nhi\r\n0\r\nX-Check: abc\r\nCookie: a=b\r\nX-Real-IP: 6.6.6.6\r\n\r\n"
    chunked = request("/", "Transfer-Encoding: chunked", "TE: trailers", method="POST", body=body)
    for _ in range(2):
        answered = wire.ask(chunked)
        # Fields that identify a client are dropped from trailers.
        assert (answered.body, answered.trailers) == (b"ok", b"X-Sum: 42\r\n")
    assert seen == [(b"hi", b"X-Check: abc\r\n")] * 2


def test_an_interim_response_is_forwarded_to_clients_of_http_1_1_only(
    penstock: "Penstock", origin: "Worker"
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    wire = penstock("--to", origin(always(hints + hints + OK)).address).connect()
    wire.send(request())
    assert [wire.answer().status for _ in range(3)] == [103, 103, 200]
    assert wire.ask(request(minor=0)).status == 200
