"""Connections of HTTP/1.0 and HTTP/1.1 are kept, closed and upgraded as their headers ask.

The client is a raw socket, and so is the worker where the demo application is too well-behaved.
The tests compare the bytes on the wire.
"""

import threading
from typing import TYPE_CHECKING

import aiohttp
import pytest
from tests.support.live.heads import fields_of, request

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire


def test_http_1_0_is_answered_and_closed(demo: "Cluster") -> None:
    wire = demo.connect()
    wire.send(request(minor=0))
    answer = wire.answer()
    assert (answer.status, answer["Connection"]) == (200, "close")
    assert wire.is_ended()


def test_http_1_0_keeps_a_connection_that_asks_for_it(demo: "Cluster") -> None:
    wire = demo.connect()
    for _ in range(3):
        answer = wire.ask(request("/", "Connection: keep-alive", minor=0))
        assert (answer.status, answer["Connection"]) == (200, "keep-alive")
        assert answer["Transfer-Encoding"] is None


def test_a_client_that_sends_connection_close_is_closed(demo: "Cluster") -> None:
    wire = demo.connect()
    answer = wire.ask(request("/", "Connection: close"))
    assert (answer.status, answer["Connection"]) == (200, "close")
    assert wire.is_ended()


def test_pipelined_requests_are_answered_in_their_order(demo: "Cluster") -> None:
    wire = demo.connect()
    chunked = b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    wire.send(
        request("/sleep?s=0.05"),
        request("/echo", "Content-Length: 5", method="POST", body=b"first"),
        request("/echo", "Transfer-Encoding: chunked", method="PUT", body=chunked),
        request("/healthz", method="HEAD"),
        request("/nothing-here"),
        request("/echo", "Content-Length: 4", method="POST", body=b"last"),
    )
    assert wire.answer().body.startswith(b"slept")
    assert wire.answer().body == b"first"
    assert wire.answer().body == b"onetwo"
    assert wire.answer("HEAD").status == 200
    assert wire.answer().status == 404
    assert wire.answer().body == b"last"


def test_a_long_pipeline_is_answered_to_its_end(demo: "Cluster") -> None:
    # More than the proxy holds: the rest waits in the kernel, and is not forgotten there.
    wire = demo.connect()
    body = b"x" * 3000
    one = request("/echo", "Content-Length: 3000", method="POST", body=body)
    sender = threading.Thread(target=wire.send, args=(one * 300,))
    sender.start()
    assert all(wire.answer().body == body for _ in range(300))
    sender.join()


def test_an_absolute_target_reaches_the_worker_as_its_path(demo: "Cluster") -> None:
    answer = demo.connect().ask(request("http://example.org/headers?a=b"))
    assert b'"target": "/headers?a=b"' in answer.body


@pytest.mark.parametrize("name", ["web", "raw"])
async def test_websockets_echo_in_both_modes(demo: "Cluster", name: str) -> None:
    host, port = demo.address(name)
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.ws_connect(f"ws://{host}:{port}/ws", max_msg_size=0) as socket,
    ):
        for size in (0, 1, 125, 126, 70_000, 1_000_000):
            await socket.send_bytes(b"x" * size)
            assert await socket.receive_bytes() == b"x" * size
            await socket.send_str("ü" * (size // 2))
            assert await socket.receive_str() == "ü" * (size // 2)
        await socket.ping()
        await socket.close()
        assert socket.close_code == 1000


def test_after_an_upgrade_every_byte_is_forwarded_from_the_first_one_on(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        fields = fields_of(wire.head())
        assert (fields["connection"], fields["upgrade"]) == ("Upgrade", "rot13/1")
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
        wire.send(b"Upgrade: rot13/1\r\n\r\nhello")
        assert wire.rest() == b"early" + b"late" * 50_000
        wire.send(b"good", b"bye" * 50_000)

    wire = penstock("--to", origin(answer).address).connect()
    # What is sent ahead belongs to the new protocol.
    wire.send(request("/", "Connection: Upgrade", "Upgrade: rot13/1"), b"early")
    head = wire.head()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert fields_of(head) == {"connection": "Upgrade", "upgrade": "rot13/1"}
    assert wire.exactly(5) == b"hello"
    wire.send(b"late" * 50_000)
    wire.finish()
    assert wire.rest() == b"good" + b"bye" * 50_000


def test_an_upgrade_that_is_declined_is_an_answer_like_any_other(demo: "Cluster") -> None:
    wire = demo.connect()
    assert wire.ask(request("/", "Connection: Upgrade", "Upgrade: rot13/1")).status == 200
    assert wire.ask(request()).status == 200
