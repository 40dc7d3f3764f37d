"""Each setting of a service takes effect in a proxy that runs, as if it had been there from the
start, also for clients that are there already. (What needs sockets is in `test_live_settings`.)
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import pytest
from tests.proxy.conftest import Harness, Wire
from tests.proxy.runtime import test_live_settings

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import FrozenModel, ProxySettings, ServiceConfig, Target
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.runtime.service import Service
from penstock_proxy.tls import handshake as handshake_module
from penstock_worker.net.stream import Stream

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE: Final = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH: Final = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"

Settings = dict[str, Any]
Connect = Callable[[], Wire]


def config(workers: int, settings: Settings) -> ServiceConfig:
    targets = tuple(
        Target(member=slot, slot=slot, address=f"127.0.0.1:{slot + 1}", joined=True, up=True)
        for slot in range(workers)
    )
    tables: Settings = {"access_log": "off"}
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        (tables.setdefault(table, {}) if table else tables)[name] = value
    return ServiceConfig(name="web", listeners=(), targets=targets, **tables)


def build(harness: Harness, workers: int, settings: Settings) -> None:
    harness.build()
    harness.service = Service(
        cast("AbstractEventLoop", harness.loop),
        Reactor(cast("AbstractEventLoop", harness.loop)),
        config(workers, settings),
        harness.timers,
        harness.fd_budget,
        None,
        lambda *_: None,
    )


# What is observed


def seconds_until(harness: Harness, happened: Callable[[], object]) -> float:
    """How long the clock runs until something has happened; a day: it has not."""
    for step in range(400):
        if happened():
            return step / 2
        harness.advance(0.5)
    return 86400


def until_answered(request: bytes) -> Callable[[Harness, Connect], object]:
    def observe(harness: Harness, connect: Connect) -> object:
        client = connect()
        client.send(request)
        return seconds_until(harness, lambda: client.written), client.written[:12]

    return observe


def until_connected_in_vain(harness: Harness, connect: Connect) -> object:
    harness.network.unresponsive = {1, 2}
    return until_answered(GET)(harness, connect)


def until_closed_when_idle(harness: Harness, connect: Connect) -> object:
    client = connect()
    ask(harness, client)
    return seconds_until(harness, lambda: client.ended or client.lost)


def until_the_tunnel_ends(harness: Harness, connect: Connect) -> object:
    client = connect()
    client.send(UPGRADE)
    harness.worker.send(SWITCH)
    return seconds_until(harness, lambda: client.lost)


def until_the_half_closed_tunnel_ends(harness: Harness, connect: Connect) -> object:
    client = connect()
    client.send(UPGRADE)
    harness.worker.send(SWITCH)
    client.send_eof()
    return seconds_until(harness, lambda: client.lost)


def answer_after_an_end(harness: Harness, connect: Connect) -> object:
    client = connect()
    client.send(GET)
    client.send_eof()
    if not client.lost:
        harness.worker.send(OK)
    return client.received()[:12]


def until_the_handshake_ends(harness: Harness, _: Connect) -> object:
    accept(harness)
    wire = harness.worker
    return seconds_until(harness, lambda: wire.lost)


def until_it_has_waited_too_long(harness: Harness, connect: Connect) -> object:
    fail(harness, 0)
    return until_answered(GET)(harness, connect)


def status(request: bytes) -> Callable[[Harness, Connect], object]:
    """The status of an error, or that a worker has got the request."""

    def observe(harness: Harness, connect: Connect) -> object:
        wires = list(harness.network.wires)
        client = connect()
        for wire in wires:
            wire.received()
        client.send(request)
        got = [wire for wire in harness.network.wires if wire.received()]
        return bytes(client.written[:12]), bool(got)

    return observe


def status_of_an_answer(size: int) -> Callable[[Harness, Connect], object]:
    def observe(harness: Harness, connect: Connect) -> object:
        client = connect()
        client.send(GET)
        worker = next(wire for wire in reversed(harness.network.wires) if wire.received())
        worker.send(OK.replace(b"\r\n", b"\r\nX: " + b"x" * size + b"\r\n", 1))
        return bytes(client.written[:12])

    return observe


def status_of_a_slow_body(harness: Harness, connect: Connect) -> object:
    client = connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(100):
        client.send(b"x" * 100)
        harness.advance(1.0)
    return bytes(client.written[:12])


def requests_of_a_connection(harness: Harness, _: Connect) -> object:
    client, answered = harness.client(), 0
    while not (client.ended or client.lost) and answered < 9:
        ask(harness, client)
        answered += 1
    return answered


def head_at_the_worker(*lines: bytes) -> Callable[[Harness, Connect], object]:
    request = b"\r\n".join((b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""))

    def observe(harness: Harness, connect: Connect) -> object:
        client = connect()
        client.send(request)
        heads = [head for wire in harness.network.wires if (head := wire.received())]
        return [line for line in heads[-1].split(b"\r\n") if not line.startswith(b"X-Request")]

    return observe


def asked_in_turn(harness: Harness, _: Connect) -> object:
    pool = harness.service.pool
    picked = [pool.pick("192.0.2.1") for _ in range(8)]
    return len({one.slot for one in picked if one is not None})


def connects_of(answer: bytes) -> Callable[[Harness, Connect], object]:
    """How many workers are asked, if each of them answers so; empty: breaks off."""

    def observe(harness: Harness, _: Connect) -> object:
        client = harness.client()
        client.send(GET)
        for _attempt in range(4):
            worker = harness.worker
            if worker.received():
                worker.send(answer) if answer else worker.reset()
        return len(harness.network.dialed), bytes(client.written[:12])

    return observe


def retries_allowed(requests: int) -> Callable[[Harness, Connect], object]:
    def observe(harness: Harness, _: Connect) -> object:
        budget = harness.service.retry_budget
        budget.count_requests(requests, harness.now)
        return sum(budget.take(harness.now) for _ in range(200))

    return observe


def waiting(harness: Harness, _: Connect) -> object:
    """How many requests may wait."""
    for slot in range(2):
        harness.service.pool.member(slot).active = 100
    fail(harness, 0)
    clients = [harness.client() for _ in range(9)]
    for client in clients:
        client.send(GET)
    waits = len(harness.service.queue)
    for slot in range(2):
        harness.service.pool.member(slot).active = 0
    return waits


def at_the_workers(harness: Harness, _: Connect) -> object:
    """How many requests two workers get at a time."""
    for client in [harness.client() for _ in range(9)]:
        client.send(GET)
    return sum(bool(wire.received()) for wire in harness.network.wires)


def waiting_with_workers(harness: Harness, _: Connect) -> object:
    """How many may wait while there are two workers that are full."""
    for client in [harness.client() for _ in range(9)]:
        client.send(GET)
    return len(harness.service.queue)


def accepted(harness: Harness, _: Connect) -> object:
    """How many connections of one client are not refused."""
    harness.service.tick(harness.now)
    return sum(harness.service.client_limit.acquire("198.51.100.1") for _ in range(9))


def room(harness: Harness, _: Connect) -> object:
    return harness.service.overload.room()


def handshakes(harness: Harness, _: Connect) -> object:
    for _attempt in range(9):
        accept(harness)
    harness.loop.run()
    acceptor = harness.service.filter_chain.tls_acceptor
    assert acceptor is not None
    return acceptor.in_progress


def buffered(harness: Harness, _: Connect) -> object:
    """What the transport of a new client and of a new worker may buffer."""
    sizes = []
    adopt = harness.network.adopt

    def recording(
        reactor: object, protocol: Any, stream: object, high: int = 0, *, first: bool = False
    ) -> None:
        sizes.append(high)
        adopt(reactor, protocol, stream, high, first=first)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("listener.filter_chain", "http.connection_pool"):
            patch.setattr(f"penstock_proxy.{name}.adopt", recording)
        accept(harness)
        harness.worker.send(GET)
    return sizes


# Members


def fail(harness: Harness, *but: int) -> None:
    """Checks of all members fail, again and again."""
    for member in harness.service.pool.members:
        for _ in range(9):
            harness.service.pool.checked(member, ok=False, now=harness.now, reason="HTTP 500")


def checks_until(state: MemberState, *, ok: bool) -> Callable[[Harness, Connect], object]:
    def observe(harness: Harness, _: Connect) -> object:
        pool = harness.service.pool
        member = pool.member(0)
        if ok:
            fail(harness)
        for number in range(9):
            if member.state is state:
                return number
            pool.checked(member, ok=ok, now=harness.now, reason="HTTP 500")
        return None

    return observe


def weight_of_a_newcomer(harness: Harness, _: Connect) -> object:
    pool = harness.service.pool
    harness.advance(100.0)
    pool.leave(0)
    pool.join(0)
    pool.checked(pool.member(0), ok=True, now=harness.now, reason="")
    harness.advance(5.0)
    return round(pool.member(0).weight_factor, 2)


def failures_until_ejected(harness: Harness, _: Connect) -> object:
    pool = harness.service.pool
    for number in range(20):
        if pool.member(0).state is MemberState.EJECTED:
            return number, pool.member(0).ejected_until - harness.now
        pool.failed(pool.member(0), harness.now)
    return None


def ejected(harness: Harness, _: Connect) -> object:
    pool = harness.service.pool
    for member in pool.members:
        pool.eject(member, harness.now, "a test")
    return sum(member.state is MemberState.EJECTED for member in pool.members)


def outlier(failed: int, requests: int) -> Callable[[Harness, Connect], object]:
    def observe(harness: Harness, _: Connect) -> object:
        detection, (bad, good) = harness.service.outlier_detection, harness.service.pool.members
        harness.now += 2.0
        if not detection.is_due(harness.now):
            return None
        detection.worst({bad: 0, good: 0}, harness.now)
        bad.total_failures += failed
        harness.now += 2.0
        return detection.worst({bad: requests, good: requests}, harness.now) is None

    return observe


def used_in_a_panic(harness: Harness, _: Connect) -> object:
    pool = harness.service.pool
    for member in pool.members[1:]:
        for _attempt in range(9):
            pool.checked(member, ok=False, now=harness.now, reason="HTTP 500")
    return len(pool.eligible)


# Connections


def ask(harness: Harness, client: Wire) -> None:
    client.send(GET)
    worker = next(wire for wire in reversed(harness.network.wires) if wire.received())
    worker.send(OK)
    assert client.received().startswith(b"HTTP/1.1 200 ")


def accept(harness: Harness) -> None:
    """A client connects, as by a listener. Its wire is the newest one."""
    harness.service.filter_chain.first_filter(Stream(-1, 0), ("192.0.2.7", 5000))


class Row(NamedTuple):
    """One setting: two values, and what is different with them."""

    before: object
    after: object
    observe: Callable[[Harness, Connect], object]
    also: Settings = {}  # noqa: RUF012 — a tuple's default, which nobody changes
    """Other settings, the same before and after."""
    workers: int = 2


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


FORWARDED: Final = (
    b"X-Forwarded-For: 203.0.113.1",
    b"Forwarded: for=203.0.113.2",
    b"Via: 1.1 first",
)
TRUSTED: Final = {"trusted_proxies": ("192.0.2.0/24",)}
LONG_HEAD: Final = GET.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 2000 + b"\r\n\r\n")
ROWS: Final = {
    "balance": Row("round_robin", "client_hash", asked_in_turn),
    "trusted_proxies": Row((), ("192.0.2.0/24",), head_at_the_worker(*FORWARDED)),
    "max_connections": Row(5, 7, room),
    "abort_on_close": Row(False, True, answer_after_an_end),
    "health.rise": Row(2, 4, checks_until(MemberState.UP, ok=True)),
    "health.fall": Row(2, 4, checks_until(MemberState.DOWN, ok=False)),
    "health.slow_start": Row(0.0, 10.0, weight_of_a_newcomer),
    "ejection.failures": Row(3, 6, failures_until_ejected),
    "ejection.eject_for": Row(10.0, 30.0, failures_until_ejected),
    "ejection.max_ejected": Row(0.5, 0.25, ejected, workers=4),
    "ejection.panic": Row(0.0, 0.5, used_in_a_panic, workers=4),
    "ejection.share": Row(0.0, 0.5, outlier(60, 100)),
    "ejection.requests": Row(200, 20, outlier(60, 100)),
    "retries.attempts": Row(2, 4, connects_of(b""), workers=4),
    "retries.on": Row((), ("reset",), connects_of(b"")),
    "retries.budget": Row(0.1, 0.5, retries_allowed(100), {"retries.min_per_second": 0}),
    "retries.min_per_second": Row(1, 3, retries_allowed(0)),
    "timeouts.connect": Row(2.0, 6.0, until_connected_in_vain),
    "timeouts.head": Row(2.0, 6.0, until_answered(b"GET /")),
    "timeouts.body": Row(2.0, 6.0, until_answered(post(9)), {"limits.min_rate": 0}),
    "timeouts.response": Row(2.0, 6.0, until_answered(GET)),
    "timeouts.total": Row(2.0, 6.0, until_answered(GET)),
    "timeouts.keepalive": Row(2.0, 6.0, until_closed_when_idle),
    "timeouts.tunnel": Row(2.0, 6.0, until_the_tunnel_ends),
    "timeouts.half_closed": Row(2.0, 6.0, until_the_half_closed_tunnel_ends),
    "timeouts.handshake": Row(2.0, 6.0, until_the_handshake_ends, {"tls": True}),
    "timeouts.queue": Row(2.0, 6.0, until_it_has_waited_too_long, {"ejection.panic": 0.0}),
    "limits.head": Row(1024, 4096, status(LONG_HEAD)),
    "limits.headers": Row(2, 3, status(GET.replace(b"\r\n\r\n", b"\r\nA: 1\r\nB: 2\r\n\r\n"))),
    "limits.target": Row(256, 512, status(GET.replace(b"/ ", b"/" + b"a" * 300 + b" "))),
    "limits.body": Row(10, 100, status(post(50))),
    "limits.min_rate": Row(0, 5000, status_of_a_slow_body),
    "limits.response_head": Row(1024, 4096, status_of_an_answer(2000)),
    "limits.requests": Row(3, 5, requests_of_a_connection),
    "limits.handshakes": Row(3, 5, handshakes, {"tls": True}),
    "limits.connections_per_client": Row(3, 5, accepted),
    "limits.queue": Row(3, 5, waiting, {"ejection.panic": 0.0}),
    "limits.per_worker": Row(1, 2, at_the_workers),
    "limits.queue_per_worker": Row(1, 2, waiting_with_workers, {"limits.per_worker": 1}),
    "limits.buffer": Row(1 << 15, 1 << 16, buffered),
    "forwarding.x_forwarded": Row(True, False, head_at_the_worker(*FORWARDED), TRUSTED),
    "forwarding.forwarded": Row(False, True, head_at_the_worker(*FORWARDED), TRUSTED),
    "forwarding.via": Row("penstock", "edge", head_at_the_worker(*FORWARDED)),
    "forwarding.trust": Row("x-forwarded", "forwarded", head_at_the_worker(*FORWARDED), TRUSTED),
}  # fmt: skip
NOT_READ: Final = {"timeouts.start"}
"""It is the supervisor's alone."""
NOT_FOR_OPEN_ONES: Final = {"limits.requests"}
"""A connection is accepted with so many."""


def keys(model: type[FrozenModel] = ProxySettings, table: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenModel):
            yield from keys(kind, f"{table}{name}.")
        else:
            yield f"{table}{name}"


def test_each_setting_is_tested_here_or_with_sockets() -> None:
    tested = [*ROWS, *test_live_settings.ROWS, *NOT_READ]
    assert sorted(tested) == sorted(keys())


@pytest.fixture
def memory(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(handshake_module, "adopt", harness.network.adopt)
    return harness


def observed(memory: Harness, key: str, *values: object, is_open: bool = False) -> object:
    """What is seen with the last of these values, after all of them. `is_open`: by a client that
    was there with the first of them."""
    row = ROWS[key]
    build(memory, row.workers, {**row.also, key: values[0]})
    client = None
    if is_open:
        client = memory.client()
        ask(memory, client)
    for value in values[1:]:
        changed = config(row.workers, {**row.also, key: value})
        memory.service.configure(changed)
        deque(memory.service.configuring_checks(changed.targets))
        memory.loop.run()
    found = row.observe(memory, memory.client if client is None else lambda: client)
    end(memory)
    return found


def end(memory: Harness) -> None:
    """Everything that was opened ends, and all counts are 0 again."""
    for one in memory.connections:
        cast("Wire", one.transport).reset()
    memory.network.refusing.clear()
    memory.network.unresponsive.clear()
    memory.loop.run()
    for wire in memory.network.wires:
        wire.reset()
    memory.loop.run()
    counts = memory.service.client_limit._counts
    counts.pop("198.51.100.1", None)
    assert not counts, "a client stays counted that is gone"
    assert memory.service.counters.active == memory.fd_budget.clients == 0


@pytest.mark.parametrize("key", ROWS)
def test_a_changed_setting_has_the_effect_that_it_has_from_the_start(
    memory: Harness, key: str
) -> None:
    before, after = ROWS[key].before, ROWS[key].after
    old, new = observed(memory, key, before), observed(memory, key, after)
    assert old != new, "the row shows nothing"
    assert observed(memory, key, before, after) == new
    assert observed(memory, key, after, before) == old
    assert observed(memory, key, before, after, before) == old


@pytest.mark.parametrize("key", [key for key in ROWS if key not in NOT_FOR_OPEN_ONES])
def test_a_changed_setting_has_effect_for_the_next_request_of_a_client_that_is_there(
    memory: Harness, key: str
) -> None:
    before, after = ROWS[key].before, ROWS[key].after
    assert observed(memory, key, before, after, is_open=True) == observed(
        memory, key, after, is_open=True
    )
