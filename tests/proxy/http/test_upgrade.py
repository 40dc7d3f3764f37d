"""An upgrade joins both connections to a duplex; it happens only if the worker accepts an offer.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.http.worker_connection import WorkerConnection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def upgraded(harness: Harness) -> Wire:
    client = harness.client()
    client.send(UPGRADE + b"early")
    assert harness.worker.received().count(b"Upgrade: x\r\n") == 1
    harness.worker.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst"
    )
    assert client.received() == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst"
    )
    return client


def test_after_an_upgrade_bytes_pass_both_ways_unchanged(harness: Harness) -> None:
    client = upgraded(harness)
    assert harness.worker.received() == b"early"
    client.send(b"\x00GET")
    harness.worker.send(b"HTTP/1.1 \xff")
    assert (harness.worker.received(), client.received()) == (b"\x00GET", b"HTTP/1.1 \xff")
    harness.worker.reset()
    assert client.lost
    assert sum(harness.service.counters.requests.values()) == 1


def test_an_upgrade_that_is_declined_is_an_ordinary_response(harness: Harness) -> None:
    client = harness.client()
    client.send(UPGRADE)
    harness.worker.send(OK)
    harness.worker.received()
    assert status(client.received()) == 200
    client.send(GET)
    assert harness.worker.received().startswith(b"GET / ")


def test_after_an_upgrade_a_worker_that_does_not_read_pauses_its_client(harness: Harness) -> None:
    client = harness.client()
    client.send(UPGRADE + b"early")
    harness.worker.full = True
    harness.worker.send(SWITCH + b"x\r\n\r\n")
    assert status(client.received()) == 101
    assert not client.is_reading()
    harness.worker.unstall()
    assert client.is_reading()
    assert harness.worker.received().endswith(b"early")


def test_a_worker_that_stalls_before_the_101_pauses_its_client_after_it(
    harness: Harness,
) -> None:
    client = harness.client()
    client.send(UPGRADE)
    harness.worker.stall()
    harness.worker.send(SWITCH + b"x\r\n\r\n")
    assert not client.is_reading()
    harness.worker.unstall()
    assert client.is_reading()


@pytest.mark.parametrize("agreed", [b"h2c", b"y", b""])
def test_only_a_protocol_that_was_offered_is_accepted(harness: Harness, agreed: bytes) -> None:
    client = harness.client()
    client.send(GET[:-2] + b"Connection: upgrade\r\nUpgrade: h2c, x\r\n\r\n")
    assert b"\r\nUpgrade: x\r\n" in harness.worker.received()
    harness.worker.send(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % agreed)
    assert status(client.received()) == 502


def test_a_connection_that_was_reset_behind_a_101_becomes_no_duplex(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No event would report that it is gone: `harness` finds a client that stays for ever.
    switch = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    monkeypatch.setattr(
        WorkerConnection, "_read_pending", lambda connection: connection.data_received(switch)
    )
    client = harness.client()
    client.send(POST.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"))
    harness.worker.reset_at_once()
    assert status(client.received()) == 502
