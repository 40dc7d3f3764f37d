"""What is done for many is done in parts: one service, member or connection in each step."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.proxy.conftest import Harness
from tests.support.proxy.running_proxy import RunningProxy, running_proxy, until

from penstock_proxy import messages
from penstock_proxy.config import ProxyConfig, Target, Timeouts
from penstock_proxy.config_parts import parts_of
from penstock_proxy.net.timer_wheel import TICK_S
from penstock_proxy.tcp.duplex import ClientHalf

if TYPE_CHECKING:
    from penstock_proxy.runtime.services import Services

MANY = 200


class HeldSlices:
    """Work for many that is not done before a test does it, a step at a time."""

    def __init__(self) -> None:
        self.works: list[Iterator[object]] = []

    def run(self, work: Iterable[object]) -> None:
        self.works.append(iter(work))

    def most_in_a_step(self, count: Callable[[], int]) -> int:
        """Do it all. By how much a count has grown in a step, at the most."""
        most = 0
        for work in self.works:
            most = max(most, most_in_a_step(work, count))
        return most


def most_in_a_step(work: Iterator[object], count: Callable[[], int]) -> int:
    most, before = 0, count()
    end = object()
    while next(work, end) is not end:
        most, before = max(most, count() - before), count()
    return max(most, count() - before)


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


def configured(proxy: RunningProxy, **keys: Any) -> ProxyConfig:
    return ProxyConfig(services=tuple(proxy.service(f"s{n}", **keys) for n in range(MANY)))


async def test_services_are_added_changed_and_removed_one_in_each_step(
    proxy: RunningProxy,
) -> None:
    await proxy.start()
    services: Services = proxy.proxy.services
    work = services.reconfiguring(configured(proxy), {})
    assert most_in_a_step(work, lambda: len(services.by_name)) == 1
    assert len(services.by_name) == MANY

    def changed() -> int:
        return sum(one.timeouts.head == 7.0 for one in services.by_name.values())

    work = services.reconfiguring(configured(proxy, timeouts=Timeouts(head=7.0)), {})
    assert most_in_a_step(work, changed) == 1
    assert changed() == MANY
    work = services.reconfiguring(ProxyConfig(services=()), {})
    assert most_in_a_step(work, lambda: len(services.leaving)) == 1
    await until(lambda: not services.leaving)


async def test_a_process_starts_with_one_service_or_member_in_each_step(
    proxy: RunningProxy,
) -> None:
    await proxy.start()
    services = proxy.proxy.services
    targets = tuple(
        Target(member=n, slot=n, address="127.0.0.1:1", joined=True, up=True) for n in range(MANY)
    )
    config = configured(proxy)
    config = ProxyConfig(services=(*config.services, proxy.service("web", *targets)))

    def made() -> int:
        pools = [one.pool for one in services.by_name.values()]
        return len(pools) + sum(len(pool.members) for pool in pools)

    work = services.configuring(config)
    assert most_in_a_step(work, made) == 1
    assert made() == MANY + 1 + MANY
    assert services.by_name["web"].pool.in_rotation == MANY
    assert not [one for one in proxy.received if one["cmd"] == messages.ROTATION], "it was told so"


async def test_a_message_behind_a_long_one_waits_for_it(proxy: RunningProxy) -> None:
    await proxy.start()
    change = {"cmd": messages.RECONFIGURE, "seq": 5, "finish": {}}
    proxy.send_each(*parts_of(configured(proxy)), change)
    proxy.send(messages.DRAIN, finish={}, within=60.0)
    assert (await proxy.answer(messages.RECONFIGURED, seq=5))["error"] == ""
    await until(lambda: all(one.stopping for one in proxy.proxy.services.by_name.values()))
    assert len(proxy.proxy.services.by_name) == MANY


async def test_a_process_has_not_drained_before_its_last_service_has(proxy: RunningProxy) -> None:
    await proxy.start()
    services = proxy.proxy.services
    deque(services.reconfiguring(configured(proxy), {}), maxlen=0)

    def drained() -> int:
        return sum(one.has_drained for one in services.by_name.values())

    work = services.draining()
    next(work, None)
    assert not services.is_empty
    assert most_in_a_step(work, drained) == 1
    assert services.is_empty


async def test_upstreams_come_and_go_one_in_each_step(proxy: RunningProxy) -> None:
    await proxy.start(proxy.service("web"))
    services = proxy.proxy.services
    targets = [
        Target(member=n, slot=n, address="127.0.0.1:1", joined=True, upstream=True)
        for n in range(MANY)
    ]
    pool = services.by_name["web"].pool
    work = services.changing_upstreams("web", targets)
    assert most_in_a_step(work, lambda: len(pool.members)) == 1
    assert len(pool.members) == MANY
    pool.checked(pool.members[0], ok=True, now=0.0, reason="")
    work = services.changing_upstreams("web", targets[:1])
    assert most_in_a_step(work, lambda: -len(pool.members)) == 1
    assert len(pool.members) == 1
    await asyncio.sleep(0)


def test_relayed_connections_are_told_of_other_timeouts_one_in_each_step(harness: Harness) -> None:
    service, slices = harness.service, HeldSlices()
    service.reactor.slices = slices  # type: ignore[assignment]
    relays = [cast("Any", ClientHalf).__new__(ClientHalf) for _ in range(MANY)]
    for relay in relays:
        relay.timeouts = service.timeouts
        service.relays[relay] = relay
    after = Timeouts(head=7.0)
    service.configure(service.config.model_copy(update={"timeouts": after}))
    assert slices.most_in_a_step(lambda: sum(one.timeouts is after for one in relays)) == 1
    assert all(one.timeouts is after for one in relays)


class IdleConnection:
    """One to a worker."""

    closed = 0
    max_idle_s = 10.0

    def __init__(self, idle_since: float, number: int = 0) -> None:
        self.idle_since = idle_since
        self.member = self
        self.number = number
        self.transport = self

    def close(self) -> None:
        IdleConnection.closed += 1


class KeptConnections:
    """What a service keeps of connections to two hundred workers, three to each of them."""

    def __init__(self, harness: Harness) -> None:
        self.pool = harness.service.connections
        self.slices = HeldSlices()
        harness.service.reactor.slices = self.slices  # type: ignore[assignment]
        self.idle = cast("Any", self.pool._idle)
        self.bound = cast("Any", self.pool._bound)
        IdleConnection.closed = 0
        for n in range(MANY):
            self.idle[n] = deque(IdleConnection(since) for since in (n, n + 4.5))
            self.bound[IdleConnection(0.0, n)] = None

    def close(self) -> int:
        """Close what is to be closed; returns how many these were."""
        before = IdleConnection.closed
        assert self.slices.most_in_a_step(lambda: IdleConnection.closed) <= 1
        self.slices.works.clear()
        return IdleConnection.closed - before

    def count(self) -> int:
        return sum(map(len, self.pool._idle.values())) + len(self.pool._bound)


def test_the_oldest_connections_are_closed_one_in_each_step(harness: Harness) -> None:
    kept = KeptConnections(harness)
    assert kept.pool.end_oldest(20) == 20
    assert IdleConnection.closed == 0
    kept.idle[2].popleft()
    assert kept.close() == 20
    # The first ones of 0 to 11, without the one that was taken; from 4.5 on the others as well.
    left = {n: len(kept.idle[n]) for n in (0, 1, 2, 3, 7, 8, 11, 12, 13)}
    assert left == {0: 0, 1: 0, 2: 0, 3: 0, 7: 0, 8: 1, 11: 1, 12: 1, 13: 2}
    assert kept.pool.end_oldest(10 * MANY) == 2 * MANY - 21
    assert kept.close() == 2 * MANY - 21
    assert (kept.pool.end_oldest(1), len(kept.bound)) == (0, MANY)


def test_dropped_connections_are_closed_one_in_each_step(harness: Harness) -> None:
    kept = KeptConnections(harness)
    kept.pool.drop(3)
    assert kept.close() == 3
    assert kept.count() == 3 * (MANY - 1)
    kept.pool.drop_all()
    assert kept.count() == 0
    assert kept.close() == 3 * (MANY - 1)


def test_overdue_connections_are_closed_some_at_each_tick(harness: Harness) -> None:
    kept = KeptConnections(harness)
    for left in (344, 88, 0):
        kept.pool.tick(1000.0)
        assert kept.count() == left
    assert kept.close() == 3 * MANY


def test_who_begins_to_wait_before_it_is_told_of_other_timeouts_has_them_already(
    harness: Harness,
) -> None:
    def serve() -> None:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        harness.worker.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    service, slices = harness.service, HeldSlices()
    service.reactor.slices = slices  # type: ignore[assignment]
    client = harness.client()
    serve()
    (connection,) = harness.connections
    for keepalive in (5.0, 50.0):
        harness.advance(1.0)
        timeouts = Timeouts(keepalive=keepalive)
        service.configure(service.config.model_copy(update={"timeouts": timeouts}))
        serve()
        deadline = connection.deadline
        assert keepalive <= deadline - harness.now <= keepalive + 2 * TICK_S
        slices.most_in_a_step(lambda: 0)
        assert connection.deadline == deadline
    # It has waited for a while: it is told.
    harness.advance(2.0)
    after = service.config.model_copy(update={"timeouts": Timeouts(keepalive=20.0)})
    service.configure(after)
    slices.most_in_a_step(lambda: 0)
    assert connection.deadline == deadline - 30.0


def test_handshakes_get_another_deadline_one_in_each_step(harness: Harness) -> None:
    class Handshake:
        moved = 0

        def move_deadline(self, seconds: float) -> None:
            Handshake.moved += 1

    service, slices = harness.service, HeldSlices()
    acceptor = service.filter_chain.make_tls_acceptor()
    service.reactor.slices = slices  # type: ignore[assignment]
    acceptor._in_progress.update(dict.fromkeys(Handshake() for _ in range(MANY)))  # type: ignore[misc]
    service.configure(service.config.model_copy(update={"timeouts": Timeouts(handshake=7.0)}))
    assert slices.most_in_a_step(lambda: Handshake.moved) == 1
    assert Handshake.moved == MANY


async def test_a_removed_service_is_closed_one_member_in_each_step(proxy: RunningProxy) -> None:
    targets = tuple(
        Target(member=n, slot=n, address="127.0.0.1:1", joined=True) for n in range(MANY)
    )
    await proxy.start(proxy.service("web", *targets))
    service = proxy.proxy.services.by_name["web"]
    assert most_in_a_step(service.closing(), lambda: -len(service.pool.members)) == 1
    assert not service.pool.members


def test_those_that_wait_for_a_header_have_less_time_one_in_each_step(harness: Harness) -> None:
    class Reader:
        hurried = 0

        def limit_time(self, seconds: float) -> None:
            Reader.hurried += 1

    chain = harness.service.filter_chain
    chain._configure_proxy_protocol()
    assert chain.proxy_protocol is not None
    waiting: Any = chain.proxy_protocol.waiting
    waiting.update(dict.fromkeys(Reader() for _ in range(MANY)))
    assert most_in_a_step(chain.draining(), lambda: Reader.hurried) == 1
    assert Reader.hurried == MANY
    waiting.clear()
