"""A worker that answers before the body has come: what the client was promised is kept.

The worker of each test is a bare socket, so that it can answer when no server would.
"""

import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.live.heads import OK, request

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.wire import Wire

CHALLENGE = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM TlRM\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("size", [1000, 400_000])
def test_an_early_challenge_does_not_end_the_authentication_of_a_connection(
    penstock: "Penstock", origin: "Worker", size: int
) -> None:
    heads: list[tuple[int, bytes]] = []
    bodies: list[bytes] = []

    def answer(wire: "Wire") -> None:
        while True:
            head = wire.head()
            if b"NTLM" not in head:
                # A health check.
                wire.send(OK)
                continue
            heads.append((id(wire), head))
            if len(heads) == 1:
                wire.send(CHALLENGE)
                bodies.append(wire.exactly(size))
            else:
                wire.send(OK)

    run = penstock("--to", origin(answer).address)
    wire = run.connect()
    length = f"Content-Length: {size}"
    wire.send(request("/", "Authorization: NTLM TlRM1", length, method="POST"))
    challenge = wire.answer()
    assert (challenge.status, challenge["Connection"]) == (401, None)
    body = bytes(range(250)) * (size // 250)
    half = size // 2
    wire.send(body[:half])
    wire.send(body[half:], request("/", "Authorization: NTLM TlRM3"))
    assert wire.answer().status == 200
    assert bodies == [body]
    assert len({connection for connection, _ in heads}) == 1


def test_a_client_that_sends_the_rest_of_its_body_late_gets_all_of_its_answer(
    penstock: "Penstock", origin: "Worker"
) -> None:
    # More than the kernels on the way hold, so that the client takes it while it still sends.
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000
    over = threading.Event()

    def answer(wire: "Wire") -> None:
        while True:
            if wire.head().startswith(b"POST"):
                wire.send(large)
                over.wait(60)
            else:
                wire.send(OK)

    run = penstock("--to", origin(answer).address)
    wire = run.connect()
    wire.send(request("/", "Content-Length: 1000", method="POST"), b"y")
    head = wire.head()
    assert b"Connection: close" not in head
    assert wire.exactly(5_000_000) == b"x" * 5_000_000
    # Longer than a connection lingers that is silent.
    run.until(lambda: run.metric("penstock_connections_active") == 1)
    over.wait(6.0)
    assert wire.exactly(15_000_000) == b"x" * 15_000_000
    wire.send(b"y" * 999)
    over.set()
    assert wire.ask(request()).status == 200
