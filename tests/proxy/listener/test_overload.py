"""A client that finds no room waits, and is accepted when there is some or refused.

None hangs or is lost, and there is no busy loop meanwhile.
Covers `listener/rejection`.
"""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
import uvloop
from tests.support.descriptors import descriptors, no_descriptor_left

from penstock_proxy.config import Limits, ServiceConfig, Target, Timeouts
from penstock_proxy.errors import NO_DESCRIPTORS
from penstock_proxy.listener import eviction
from penstock_proxy.listener.overload import Sharing
from penstock_proxy.listener.rejection import MAX_LINGERING
from penstock_proxy.net.peer import Peer
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import SocketTransport
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import RESERVE, FdBudget
from penstock_worker.net import lingering_close
from penstock_worker.net.stream import Stream

DEADLINE_S = 5.0
TIME_LIMIT_S = 2.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Harness:
    """One service without a worker, its listener, its clients and its clock."""

    def __init__(self, listener: socket.socket, **keys: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.reactor = Reactor(self.loop)
        self.listener = listener
        self.now = monotonic()
        self.timers = TimerWheel(self.now)
        self.fd_budget = keys.pop("fd_budget", None) or FdBudget(
            keys.pop("descriptors", 1024), 0, 0
        )
        keys.setdefault("limits", Limits(connections_per_client=0))
        config = ServiceConfig(
            name="web",
            listeners=(listener.fileno(),),
            targets=(Target(member=0, slot=0, address="127.0.0.1:1"),),
            access_log="off",
            timeouts=Timeouts(queue=TIME_LIMIT_S),
            **keys,
        )
        self.service = Service(
            self.loop,
            self.reactor,
            config,
            self.timers,
            self.fd_budget,
            None,
            lambda *_: None,
        )
        self.counters = self.service.counters
        self.spare = self.service.overload.spare = lingering_close.SpareDescriptor()
        self.address = listener.getsockname()
        # The acceptor owns the socket now.
        listener.detach()
        self.clients: list[socket.socket] = []
        self.service.listeners.start()

    def connect(self, times: int = 1) -> list[socket.socket]:
        clients = [socket.socket(self.family) for _ in range(times)]
        for sock in clients:
            sock.connect(self.address)
            sock.setblocking(False)
        self.clients += clients
        return clients

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 — nothing sets an event for us
                await asyncio.sleep(0.001)

    async def turns(self, count: int = 5) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        """Tick after tick, as the proxy does."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            self.timers.tick(self.now)
            self.service.tick(self.now)
            await self.turns()

    async def read_all(self, client: socket.socket) -> bytes:
        """All that a client gets up to a clean end; ConnectionResetError if it is not clean."""
        answer = b""
        async with asyncio.timeout(DEADLINE_S):
            while piece := await self.loop.sock_recv(client, 4096):
                answer += piece
        return answer

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        self.service.drain()
        self.service.overload.rejections.close()
        self.spare.close()
        async with asyncio.timeout(DEADLINE_S):
            # Connections that wait for a worker need the clock.
            while self.counters.active:
                await self.pass_time(0.25)
        self.reactor.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def listening_socket() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


# -- waiting


MAX_CONNECTIONS = [{"max_connections": 1}, {"descriptors": RESERVE + 3}]


@pytest.mark.parametrize("keys", MAX_CONNECTIONS, ids=["connections", "descriptors"])
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_client_that_waits_too_long_is_refused_and_a_later_one_accepted(
    runner: asyncio.Runner, mode: str, keys: dict[str, int]
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), mode=mode, **keys)
        service = harness.service
        # A connection that stays, whatever it is.
        service.client_accepted()
        early, *_ = harness.connect(1)
        early.send(GET)
        await harness.until(lambda: sum(harness.counters.pauses.values()))
        await harness.pass_time(TIME_LIMIT_S)
        (late,) = harness.connect()
        late.send(GET)
        await harness.pass_time(0.5)
        answer = await harness.read_all(early)
        if mode == "http":
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" in answer
        else:
            assert answer == b""
        reason = "max_connections" if "max_connections" in keys else "no_descriptors"
        assert harness.counters.rejected[reason] == 1
        assert harness.counters.connections == 1
        assert harness.counters.pauses[reason] >= 1
        service.client_closed("")
        await harness.until(lambda: harness.counters.connections == 2)
        await harness.close()

    runner.run(main())


def test_a_queue_that_moves_is_not_refused_however_long_it_is(runner: asyncio.Runner) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), max_connections=5)
        for _ in range(5):
            harness.service.client_accepted()
        for client in harness.connect(40):
            client.send(GET[:10])
        for count in range(5, 45, 5):
            await harness.pass_time(0.25)
            for _ in range(5):
                harness.service.client_closed("")
            await harness.until(lambda: harness.counters.connections >= 5 + count)  # noqa: B023
        assert harness.counters.rejected["max_connections"] == 0
        for _ in range(35):
            # All of the 40 are still there, and will be counted when they leave.
            harness.service.client_accepted()
        await harness.close()

    runner.run(main())


def test_clients_of_a_unix_socket_are_refused_too(runner: asyncio.Runner) -> None:
    async def main() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0penstock-overload-{os.getpid()}")
        listener.listen(16)
        listener.setblocking(False)
        address = listener.getsockname()
        harness = Harness(listener, max_connections=1)
        harness.service.client_accepted()
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        client.setblocking(False)
        harness.clients.append(client)
        await harness.pass_time(TIME_LIMIT_S + 1)
        assert (await harness.read_all(client)).startswith(b"HTTP/1.1 503 ")
        harness.service.client_closed("")
        await harness.close()

    runner.run(main())


# -- the system has no descriptors


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_without_descriptors_the_spare_one_refuses_and_then_accepting_goes_on(
    runner: asyncio.Runner, mode: str
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), mode=mode)
        clients = harness.connect(5)
        for client in clients:
            client.send(GET)
        with no_descriptor_left():
            await harness.until(lambda: harness.counters.pauses["system"])
            accepting = [harness.service.listeners.is_accepting]
            # Nothing is asked of the kernel between two ticks: that would be a busy loop.
            before = harness.counters.pauses["system"]
            await harness.turns(100)
            assert harness.counters.pauses["system"] == before
            await harness.pass_time(TIME_LIMIT_S + 0.75)
            answer = [await harness.read_all(client) for client in clients]
        assert all(one.startswith(b"HTTP/1.1 503 ") == (mode == "http") for one in answer)
        assert harness.counters.rejected["no_descriptors"] == 5
        assert harness.counters.connections == 0
        harness.connect(3)
        await harness.pass_time(0.25)
        await harness.until(lambda: harness.counters.connections == 3)
        accepting.append(harness.service.listeners.is_accepting)
        assert accepting == [False, True]
        await harness.close()

    runner.run(main())


def test_clients_that_wait_for_a_descriptor_are_accepted_as_soon_as_there_is_one(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), mode="tcp")
        harness.connect(5)
        with no_descriptor_left():
            await harness.until(lambda: harness.counters.pauses["system"])
            await harness.pass_time(1.0)
        await harness.pass_time(0.25)
        await harness.until(lambda: harness.counters.connections == 5)
        assert harness.counters.rejected["no_descriptors"] == 0
        await harness.close()

    runner.run(main())


def test_draining_refuses_what_cannot_be_accepted(runner: asyncio.Runner) -> None:
    async def main() -> None:
        harness = Harness(listening_socket())
        with no_descriptor_left():
            await harness.pass_time(0.25)
        harness.service.listeners._own[0]._pause()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = harness.connect(3)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            harness.service.drain()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            assert (await harness.read_all(client)).startswith(b"HTTP/1.1 503 ")
        await harness.close()

    runner.run(main())


class FailingListener(socket.socket):
    """A listener whose first accepts fail."""

    errors: list[int]

    def _accept(self) -> tuple[int, Any]:
        if self.errors:
            raise OSError(self.errors.pop(), "error_number")
        accepted: tuple[int, Any] = super()._accept()  # type: ignore[misc]
        return accepted


@pytest.mark.parametrize("error_number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
def test_an_aborted_connection_does_not_end_draining(
    runner: asyncio.Runner, error_number: int
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), mode="tcp")
        (acceptor,) = harness.service.listeners._own
        acceptor._pause()
        failing = FailingListener(fileno=acceptor.listener.detach())
        failing.setblocking(False)
        failing.errors = [error_number, error_number]
        acceptor.listener = failing
        harness.connect(3)
        harness.service.listeners.drain()
        assert harness.counters.connections == 3
        await harness.close()

    runner.run(main())


# -- making room


NOTHING = b""
HALF = GET[:10]


@pytest.mark.parametrize("sent", [NOTHING, HALF, GET], ids=["nothing", "half", "kept alive"])
def test_the_longest_without_a_request_is_closed_to_make_room(
    runner: asyncio.Runner, sent: bytes
) -> None:
    async def main() -> None:
        # No request may wait, so each is answered at once: there is no worker.
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=12, limits=limits)
        held = []
        for _ in range(12):
            held.append(await came(harness, sent))
            await harness.pass_time(0.25)
        harness.connect()
        await harness.until(lambda: harness.counters.connections == 13)
        # Half a request is answered, like any other that there is no room for.
        answer = await harness.read_all(held[0])
        assert answer[:13] == (b"HTTP/1.1 503 " if sent == HALF else b"")
        for client in held[1:]:
            assert is_open(client)
        state = "idle" if sent == GET else "no_request"
        assert harness.counters.evicted[state] == sum(harness.counters.evicted.values()) == 1
        await harness.close()

    runner.run(main())


async def came(harness: Harness, sent: bytes, address: str = "127.0.0.1") -> socket.socket:
    """A client has connected and sent that; of a whole request it has read the answer."""
    client = socket.socket(harness.family)
    harness.clients.append(client)
    if harness.family == socket.AF_INET:
        client.bind((address, 0))
    before = harness.counters.connections
    client.connect(harness.address)
    client.setblocking(False)
    client.sendall(sent)
    await harness.until(lambda: harness.counters.connections > before)
    if sent == GET:
        await harness.loop.sock_recv(client, 4096)
    else:
        received = harness.counters.received + len(sent) * (before + 1)
        await harness.until(lambda: harness.counters.received >= min(received, len(sent)))
        await harness.turns()
    return client


def is_open(client: socket.socket) -> bool:
    """Nothing has come, and no end."""
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("sent", [NOTHING, HALF, GET], ids=["nothing", "half", "kept alive"])
def test_two_addresses_cannot_keep_everybody_else_out(runner: asyncio.Runner, sent: bytes) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=10, limits=limits)
        (modest,) = [await came(harness, sent, "127.0.0.4")]
        for number in range(9):
            await came(harness, sent, f"127.0.0.{2 + number % 2}")
        others = harness.connect(3)
        await harness.pass_time(1.75)
        assert harness.counters.connections == 13
        # None of them was idle for longer than the first one, and none had as few connections.
        assert all(map(is_open, [modest, *others]))
        await harness.close()

    runner.run(main())


def test_who_has_just_been_served_is_closed_only_if_somebody_waits_on(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=1, limits=limits)
        client = await came(harness, GET)
        harness.connect()
        await harness.until(lambda: harness.counters.pauses["max_connections"])
        await harness.turns(50)
        assert is_open(client)
        await harness.pass_time(0.5)
        assert not is_open(client)
        assert harness.counters.connections == 2
        await harness.close()

    runner.run(main())


def test_who_has_just_come_has_a_moment_for_its_request(runner: asyncio.Runner) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), max_connections=1)
        client = await came(harness, HALF)
        harness.connect()
        await harness.pass_time(1.0)
        assert is_open(client)
        await harness.pass_time(0.5)
        assert not is_open(client)
        await harness.close()

    runner.run(main())


def test_a_request_that_is_served_is_never_cut(runner: asyncio.Runner) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), max_connections=3)
        # They wait for a worker.
        busy = [await came(harness, NOTHING) for _ in range(3)]
        for client in busy:
            client.sendall(GET)
        await harness.until(lambda: len(harness.service.queue) == 3)
        harness.connect(5)
        await harness.pass_time(1.5)
        assert all(map(is_open, busy))
        assert harness.counters.connections == 3
        await harness.close()

    runner.run(main())


def test_a_request_that_has_come_and_was_not_read_yet_is_not_cut(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=1, limits=limits)
        client = await came(harness, GET)
        harness.connect()
        await harness.until(lambda: harness.counters.pauses["max_connections"])
        client.sendall(GET)
        # No turn of the loop since.
        harness.now += 0.25
        harness.timers.tick(harness.now)
        harness.service.tick(harness.now)
        assert (await harness.loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 503 ")
        await harness.close()

    runner.run(main())


def test_a_client_that_does_not_take_its_answer_is_left_its_time_and_no_more(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=1, limits=limits)
        client = await came(harness, GET)
        monkeypatch.setattr(SocketTransport, "get_write_buffer_size", lambda _: 1)
        harness.connect()
        await harness.pass_time(1.5)
        assert is_open(client)
        await harness.pass_time(harness.service.timeouts.body)
        assert is_open(client)
        harness.connect()
        await harness.pass_time(0.5)
        assert not is_open(client)
        await harness.close()

    runner.run(main())


def test_a_service_that_waits_for_descriptors_gets_those_of_idle_clients_of_another(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        idle = Harness(listening_socket(), descriptors=RESERVE + 2 + 20, limits=limits)
        held = [await came(idle, GET) for _ in range(10)]
        starved = Harness(listening_socket(), limits=limits, fd_budget=idle.fd_budget)
        both = Sharing()
        idle.service.overload.share(both)
        starved.service.overload.share(both)
        (first, *_) = starved.connect(3)
        await starved.until(lambda: starved.counters.pauses["no_descriptors"])
        for _ in range(3):
            await idle.pass_time(0.25)
            await starved.pass_time(0.25)
        await starved.until(lambda: starved.counters.connections == 3)
        assert idle.counters.evicted == {"idle": 3, "no_request": 0}
        assert sum(map(is_open, held)) == 7
        assert is_open(first)
        await starved.close()
        await idle.close()

    runner.run(main())


def test_a_tick_looks_at_a_bounded_number_and_the_next_one_at_the_others(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(eviction, "MAX_LOOKS", 4)
        limits = Limits(connections_per_client=0)
        harness = Harness(listening_socket(), max_connections=10, limits=limits)
        busy = [await came(harness, NOTHING) for _ in range(9)]
        for client in busy:
            client.sendall(GET)
        await harness.until(lambda: len(harness.service.queue) == 9)
        await came(harness, NOTHING)
        await harness.pass_time(1.25)
        harness.connect()
        await harness.until(lambda: harness.counters.pauses["max_connections"])
        assert harness.counters.connections == 10
        for _ in range(3):
            await harness.pass_time(0.25)
        assert harness.counters.evicted["no_request"] == 1
        await harness.close()

    runner.run(main())


def test_a_connection_that_was_routed_to_a_full_service_takes_the_place_of_an_idle_one(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0, queue=0)
        harness = Harness(listening_socket(), max_connections=2, limits=limits)
        held = [await came(harness, GET) for _ in range(2)]
        await harness.pass_time(0.25)
        ours, theirs = socket.socketpair()
        harness.clients.append(ours)
        routed = Stream(theirs.detach(), socket.AF_UNIX)
        harness.service.filter_chain.accept_routed(routed, Peer(("127.0.0.9", 1)))
        # Two have gone, as others may be routed here as well.
        await harness.until(lambda: harness.counters.active == 1)
        await harness.until(lambda: not any(map(is_open, held)))
        ours.setblocking(False)
        assert is_open(ours)
        await harness.close()

    runner.run(main())


def test_a_connection_that_was_routed_away_makes_room_for_one_that_waits(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), max_connections=1)
        harness.service.client_accepted()
        harness.connect()
        await harness.until(lambda: harness.counters.pauses["max_connections"])
        harness.service.filter_chain.connection_routed("")
        # No tick is needed.
        await harness.until(lambda: harness.counters.connections == 2)
        assert not sum(harness.counters.rejected.values())
        assert not harness.service.overload.is_full
        await harness.close()

    runner.run(main())


# -- connections per client


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_client_with_too_many_connections_is_refused_and_others_are_not(
    runner: asyncio.Runner, mode: str
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), mode=mode, limits=Limits(connections_per_client=2))
        first, _, third = harness.connect(3)
        third.send(GET)
        answer = await harness.read_all(third)
        assert answer.startswith(b"HTTP/1.1 429 ") if mode == "http" else answer == b""
        assert harness.counters.rejected["client_limit"] == 1
        assert harness.counters.active == 2
        if mode == "http":
            with socket.socket() as other:
                other.bind(("127.0.0.2", 0))
                other.connect(harness.address)
                await harness.until(lambda: harness.counters.active == 3)
            await harness.until(lambda: harness.counters.active == 2)
            first.close()
            await harness.until(lambda: harness.counters.active == 1)
            harness.connect()
            await harness.until(lambda: harness.counters.active == 2)
            assert harness.counters.rejected["client_limit"] == 1
        await harness.close()
        assert len(harness.service.client_limit) == 0

    runner.run(main())


def test_a_share_is_of_what_the_proxy_can_accept(runner: asyncio.Runner) -> None:
    async def main() -> None:
        share = Limits(connections_per_client=0.5)
        harness = Harness(listening_socket(), descriptors=RESERVE + 1 + 40, limits=share)
        assert harness.service.client_limit.max_per_client == 10
        await harness.close()
        harness = Harness(listening_socket(), max_connections=8, limits=share)
        assert harness.service.client_limit.max_per_client == 4
        await harness.close()

    runner.run(main())


def test_a_share_is_of_the_settings_of_now_and_not_of_those_at_the_last_tick(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        share = Limits(connections_per_client=0.5)
        harness = Harness(listening_socket(), max_connections=2, limits=share)
        service = harness.service
        service.configure(service.config.model_copy(update={"max_connections": 8}))
        assert service.client_limit.max_per_client == 4
        await harness.close()

    runner.run(main())


def test_a_trusted_proxy_is_not_limited(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=1)
        harness = Harness(listening_socket(), limits=limits, trusted_proxies=("127.0.0.0/8",))
        harness.connect(3)
        await harness.until(lambda: harness.counters.active == 3)
        assert harness.counters.rejected["client_limit"] == 0
        await harness.close()

    runner.run(main())


def test_the_number_of_lingering_clients_is_bounded(runner: asyncio.Runner) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), limits=Limits(connections_per_client=1))
        harness.connect()
        await harness.until(lambda: harness.counters.active == 1)
        before = descriptors()
        clients = harness.connect(3 * MAX_LINGERING)
        await harness.until(lambda: harness.counters.rejected["client_limit"] == len(clients))
        assert descriptors() - before - len(clients) <= MAX_LINGERING
        # They never close, and are closed soon.
        await harness.pass_time(lingering_close.IDLE_S + 0.75)
        assert descriptors() - before == len(clients)
        await harness.close()

    runner.run(main())


# -- the workers have the clients


def test_workers_are_asked_at_once_and_at_each_tick_for_as_many_as_wait(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), scheme="handoff", max_connections=3)
        asked: list[int] = []
        harness.service.overload.on_crowded = asked.append
        harness.connect(3)
        await harness.until(lambda: harness.counters.connections == 3)
        await harness.pass_time(1.0)
        assert not asked, "nobody waits to be accepted"
        harness.connect()
        await harness.until(lambda: asked)
        assert asked == [1]
        harness.connect()
        await harness.pass_time(0.25)
        assert asked == [1], "they have just been asked"
        await harness.pass_time(0.75)
        assert asked == [1, 2, 2, 2]
        await harness.pass_time(TIME_LIMIT_S)
        said = len(asked)
        await harness.pass_time(1.0)
        assert len(asked) == said, "they were refused"
        await harness.close()

    runner.run(main())


@pytest.mark.parametrize(
    "keys",
    [{"scheme": "handoff", "descriptors": RESERVE + 3}, {"max_connections": 1}],
    ids=["descriptors", "ports"],
)
def test_workers_are_not_asked_for_what_they_do_not_have(
    runner: asyncio.Runner, keys: dict[str, Any]
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket(), **keys)
        asked: list[int] = []
        harness.service.overload.on_crowded = asked.append
        harness.connect(5)
        await harness.until(lambda: sum(harness.counters.pauses.values()))
        await harness.pass_time(1.0)
        assert not asked
        await harness.close()

    runner.run(main())


class FullService:
    """One of many that are full."""

    asked = 0

    def room(self) -> int:
        FullService.asked += 1
        return 0


def test_the_close_of_a_client_looks_at_no_service_if_nobody_waits_and_else_at_a_few(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        harness = Harness(listening_socket())
        overload = harness.service.overload
        sharing = overload.sharing
        monkeypatch.setattr(FullService, "asked", 0)
        sharing.all += [FullService() for _ in range(200)]  # type: ignore[misc]
        overload.resume()
        assert FullService.asked == 0
        sharing.full.update(dict.fromkeys(sharing.all[1:]))
        overload.resume()
        assert 0 < FullService.asked < 10
        del sharing.all[1:]
        sharing.full.clear()
        await harness.close()

    runner.run(main())


def test_all_services_together_are_looked_at_for_a_bounded_number_of_connections_in_a_turn(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=0)
        budget = FdBudget(RESERVE + 2 + 60, 0, 0)
        both = [Harness(listening_socket(), limits=limits, fd_budget=budget) for _ in range(2)]
        sharing = Sharing()
        for one in both:
            one.service.overload.share(sharing)
            for _ in range(10):
                await came(one, NOTHING)
        monkeypatch.setattr(eviction, "MAX_LOOKS", 6)
        looked: list[int] = []
        candidates = eviction.candidates

        def noting(found: list[Any], *rest: Any) -> Any:
            looked.append(len(found))
            return candidates(found, *rest)

        monkeypatch.setattr(eviction, "candidates", noting)
        first = both[0].service.overload
        monkeypatch.setattr(first, "_wanted", lambda _: 100)
        both[0].now += 0.25
        both[0].timers.tick(both[0].now)
        for _ in first._making_room(NO_DESCRIPTORS):
            assert sum(looked) <= 6
            looked.clear()
        for one in both:
            await one.close()

    runner.run(main())
