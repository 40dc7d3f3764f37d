"""What is in flight while settings change ends as it would have, or as it would from now on."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.proxy.conftest import Harness, Wire
from tests.support.proxy.running_proxy import RunningProxy, running_proxy, until

from penstock_proxy import messages
from penstock_proxy.config import Health, ServiceConfig, Target
from penstock_proxy.http.client_connection import ClientConnection
from penstock_worker.handoff.protocol import CREDIT, receive

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def change(harness: Harness, **tables: Any) -> None:
    """Change some keys of some tables."""
    before = harness.service.config
    new = {
        name: getattr(before, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in tables.items()
    }
    harness.service.configure(before.model_copy(update=new))
    harness.loop.run()


# -- time-outs


def test_a_request_with_a_limit_in_all_is_not_its_workers_fault_when_the_limit_is_gone(
    harness: Harness,
) -> None:
    harness.build(total=2.0)
    client = harness.client()
    client.send(GET)
    change(harness, timeouts={"total": 0.0})
    harness.advance(3.0)
    assert client.written == b""
    harness.advance(60.0)
    assert client.received().startswith(b"HTTP/1.1 504 ")
    assert harness.service.counters.errors["response_timeout"] == 1


def test_a_request_in_the_queue_keeps_its_time(harness: Harness) -> None:
    harness.build(queue=5.0, total=2.0)
    harness.service.pool.leave(0)
    client = harness.client()
    client.send(GET)
    change(harness, timeouts={"total": 60.0, "queue": 60.0})
    harness.advance(4.0)
    assert client.written == b""
    harness.advance(6.0)
    assert client.received().startswith(b"HTTP/1.1 503 ")


def test_how_long_a_client_is_idle_is_known_when_the_time_outs_have_changed(
    harness: Harness,
) -> None:
    fresh, kept = harness.client(), harness.client()
    kept.send(GET)
    harness.worker.send(OK)
    since = [one.idle_since for one in harness.connections]
    for seconds in (1.0, 500.0):
        change(harness, timeouts={"head": seconds, "keepalive": seconds})
        assert [one.idle_since for one in harness.connections] == since
    assert not fresh.lost


def test_a_response_that_has_begun_is_not_ended_by_other_time_outs(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    change(harness, timeouts={"head": 1.0, "keepalive": 1.0, "response": 1.0, "body": 9.0})
    harness.advance(5.0)
    harness.worker.send(OK[-1:])
    assert client.received() == OK


def test_a_tunnel_lives_as_long_as_tunnels_may_now(harness: Harness) -> None:
    change(harness, timeouts={"tunnel": 10.0})
    client = harness.client()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    harness.worker.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    change(harness, timeouts={"tunnel": 100.0})
    harness.advance(50.0)
    assert not client.lost
    harness.advance(60.0)
    assert client.lost


# -- limits


@pytest.mark.parametrize("limit", [0, 2])
def test_requests_that_wait_are_served_at_once_when_workers_may_have_more(
    harness: Harness, limit: int
) -> None:
    harness.build(queue=60.0, per_worker=1)
    clients = [harness.client() for _ in range(2)]
    for client in clients:
        client.send(GET)
    assert len(harness.service.queue) == 1
    change(harness, limits={"per_worker": limit})
    assert len(harness.service.queue) == 0
    for wire in harness.network.wires:
        wire.send(OK)
    assert [client.received() for client in clients] == [OK, OK]


def test_a_lower_limit_ends_nothing_and_holds_as_soon_as_there_is_less(harness: Harness) -> None:
    harness.build(queue=60.0)
    clients = [harness.client() for _ in range(4)]
    for client in clients[:3]:
        client.send(GET)
    change(harness, limits={"per_worker": 2})
    clients[3].send(GET)
    assert len(harness.service.queue) == 1
    wires = harness.network.wires
    assert all(wire.received() for wire in wires)
    for wire, waiting in zip(wires[:2], (1, 0), strict=True):
        wire.send(OK)
        assert len(harness.service.queue) == waiting
    next(wire for wire in wires if wire.received()).send(OK)
    wires[2].send(OK)
    assert [client.received() for client in clients] == [OK] * 4


def test_a_queue_that_is_made_shorter_keeps_whom_it_has(harness: Harness) -> None:
    harness.build(queue=60.0, per_worker=1)
    for client in [harness.client() for _ in range(4)]:
        client.send(GET)
    change(harness, limits={"queue": 1})
    assert len(harness.service.queue) == 3


# -- connections to workers


def with_header(harness: Harness) -> Wire:
    """A client whose connections to workers begin with a PROXY header."""
    harness.fd_budget.clients += 1
    harness.service.counters.active += 1
    client = ClientConnection(harness.service, ("192.0.2.1", 5000), b"PROXY UNKNOWN\r\n")
    harness.service.client_limit.acquire(client.counted_address)
    harness.service.clients.add(client)
    wire = Wire(harness.loop, client)
    client.connection_made(wire)
    return wire


def test_a_connection_of_one_client_is_not_kept_for_others_when_headers_are_off(
    harness: Harness,
) -> None:
    change(harness, send_proxy="v1")
    client = with_header(harness)
    client.send(GET)
    change(harness, send_proxy="")
    worker = harness.worker
    worker.send(OK)
    assert b"\r\nConnection: close\r\n" in client.received()
    assert worker.lost


def test_a_connection_without_a_header_is_not_kept_when_headers_are_on(harness: Harness) -> None:
    idle, busy = harness.client(), harness.client()
    idle.send(GET)
    harness.worker.send(OK)
    for _ in range(2):
        busy.send(GET)
    change(harness, send_proxy="v1")
    for wire in harness.network.wires:
        wire.send(OK)
    assert all(wire.lost for wire in harness.network.wires)


def test_a_cached_head_that_is_too_long_now_is_refused(harness: Harness) -> None:
    long_ = OK.replace(b"\r\n", b"\r\nX: " + b"x" * 2000 + b"\r\n", 1)
    client = harness.client()
    for limit, status in ((4096, b"200"), (1024, b"502"), (4096, b"200")):
        change(harness, limits={"response_head": limit}, retries={"on": ()})
        client.send(GET)
        next(wire for wire in harness.network.wires if wire.received()).send(long_)
        assert client.received()[9:12] == status


# -- pipelined requests


def test_a_retired_client_is_answered_what_it_has_sent_and_no_more(harness: Harness) -> None:
    client = harness.client()
    client.send(GET + GET)
    change(harness, send_proxy="v1")
    harness.worker.send(OK)
    assert client.received().count(b"HTTP/1.1 200 OK") == 1
    assert client.ended or client.lost


@pytest.mark.parametrize("part", [b"", GET[:9]])
def test_a_client_whose_request_is_on_its_way_is_served_once_more(
    harness: Harness, part: bytes
) -> None:
    client = harness.client()
    client.send(part)
    change(harness, verifies=True)
    client.send(GET[len(part) :])
    harness.worker.send(OK)
    assert b"\r\nConnection: close\r\n" in client.received()


# -- handoff


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


class LinkedWorker:
    """The worker's end of a link, which takes what it is told to take."""

    def __init__(self, proxy: RunningProxy, stack: ExitStack, member: int) -> None:
        ours, self._end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end, name in ((ours, "proxy"), (self._end, "worker")):
            stack.enter_context(end)
            keys = {"service": "web", "member": member, "link": 1, "end": name}
            proxy.send(messages.LINK, end, **keys)
        proxy.send(messages.JOIN, service="web", member=member, link=1)

    def take(self) -> None:
        """Take what is on its way."""
        while (received := receive(self._end)) is not None:
            kinds, fds = received
            for fd in fds:
                os.close(fd)
            self._end.send(CREDIT.pack(len(kinds), 0))


def handoff(proxy: RunningProxy) -> ServiceConfig:
    return ServiceConfig(
        name="web",
        scheme="handoff",
        listeners=(),
        targets=(Target(member=1, slot=0, address=""),),
        access_log="off",
        handoff_window=1,
        health=Health(interval=3600.0),
    )


async def test_clients_of_a_removed_service_are_handed_over_and_then_it_is_gone(
    proxy: RunningProxy,
) -> None:
    await proxy.start(handoff(proxy))
    service = proxy.proxy.services.by_name["web"]
    with ExitStack() as stack:
        worker = LinkedWorker(proxy, stack, 1)
        await proxy.stats()
        service.pool.checked(service.pool.member(1), ok=True, now=0.0, reason="")
        for _ in range(2):
            await proxy.client("web")
        await until(lambda: service.counters.connections == 2)
        # One is on its way and the other one waits, because the window is full.
        assert (service.counters.in_flight, len(service.queue)) == (1, 1)
        proxy.stop_listening("web")
        await proxy.reconfigure(web=60.0)

        def both_are_taken() -> bool:
            worker.take()
            return service.counters.handoffs["accepted"] == 2

        await until(both_are_taken)
        # Both are the worker's now, and the service is there until they have ended.
        await proxy.stats()
        assert list(proxy.proxy.services.named("web")) == [service]
        proxy.send(messages.UNLINK, service="web", link=1)
        await proxy.answer(messages.UNLINKED, link=1)
        await until(lambda: not list(proxy.proxy.services.named("web")))
