"""Whoever finds no room waits, is let in when there is some, or is told no: nobody hangs, nobody
is lost, and nothing spins meanwhile."""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop
from tests.support.descriptors import descriptors, no_descriptor_left

from penstock_proxy.config import Limits, ServiceConfig, Target, Timeouts
from penstock_proxy.listener.rejection import MAX_LINGERING
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import RESERVE, FdBudget
from penstock_worker.net import lingering_close

if TYPE_CHECKING:
    from penstock_proxy.http.client_connection import ClientConnection

DEADLINE_S = 5.0
PATIENCE_S = 2.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Street:
    """One service without a worker, its listener, its clock, and who comes to its door."""

    def __init__(self, listener: socket.socket, **keys: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.reactor = Reactor(self.loop)
        self.listener = listener
        self.now = monotonic()
        self.timers = TimerWheel(self.now)
        self.fd_budget = FdBudget(keys.pop("descriptors", 1024), 1, 0)
        keys.setdefault("limits", Limits(connections_per_client=0))
        config = ServiceConfig(
            name="web",
            listeners=(listener.fileno(),),
            targets=(Target(slot=0, address="127.0.0.1:1"),),
            access_log="off",
            timeouts=Timeouts(queue=PATIENCE_S),
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
        # From now on the acceptor's; but a test may look at its queue.
        listener.detach()
        self.clients: list[socket.socket] = []
        self.service.listeners.start()

    def knock(self, times: int = 1) -> list[socket.socket]:
        came = [socket.socket(self.family) for _ in range(times)]
        for sock in came:
            sock.connect(self.address)
            sock.setblocking(False)
        self.clients += came
        return came

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

    async def hear(self, client: socket.socket) -> bytes:
        """All that it is told, to a clean end; ConnectionResetError if it is not clean."""
        said = b""
        async with asyncio.timeout(DEADLINE_S):
            while piece := await self.loop.sock_recv(client, 4096):
                said += piece
        return said

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        self.service.drain()
        self.service.overload.rejections.close()
        self.spare.close()
        async with asyncio.timeout(DEADLINE_S):
            # Who waits for a worker does so by the clock.
            while self.counters.active:
                await self.pass_time(0.25)
        self.reactor.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def door() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


# -- waiting


MAX_CONNECTIONS = [{"max_connections": 1}, {"descriptors": RESERVE + 3}]


@pytest.mark.parametrize("keys", MAX_CONNECTIONS, ids=["connections", "descriptors"])
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_who_waits_too_long_is_told_no_and_who_does_not_is_let_in(
    runner: asyncio.Runner, mode: str, keys: dict[str, int]
) -> None:
    async def main() -> None:
        street = Street(door(), mode=mode, **keys)
        service = street.service
        # A connection that stays, whatever it is.
        service.client_accepted()
        early, *_ = street.knock(1)
        early.send(GET)
        await street.until(lambda: sum(street.counters.pauses.values()))
        await street.pass_time(PATIENCE_S)
        (late,) = street.knock()
        late.send(GET)
        await street.pass_time(0.5)
        said = await street.hear(early)
        if mode == "http":
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" in said
        else:
            assert said == b""
        reason = "max_connections" if "max_connections" in keys else "no_descriptors"
        assert street.counters.rejected[reason] == 1
        assert street.counters.connections == 1
        assert street.counters.pauses[reason] >= 1
        service.client_closed("")
        await street.until(lambda: street.counters.connections == 2)
        await street.close()

    runner.run(main())


def test_a_queue_that_moves_is_left_alone_however_long_it_is(runner: asyncio.Runner) -> None:
    async def main() -> None:
        street = Street(door(), max_connections=5)
        for _ in range(5):
            street.service.client_accepted()
        for client in street.knock(40):
            client.send(GET[:10])
        for count in range(5, 45, 5):
            await street.pass_time(0.25)
            for _ in range(5):
                street.service.client_closed("")
            await street.until(lambda: street.counters.connections >= 5 + count)  # noqa: B023
        assert street.counters.rejected["max_connections"] == 0
        for _ in range(35):
            # All of the 40 are still there, and will be counted when they leave.
            street.service.client_accepted()
        await street.close()

    runner.run(main())


def test_a_unix_socket_that_is_full_for_long_says_no_too(runner: asyncio.Runner) -> None:
    async def main() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0penstock-overload-{os.getpid()}")
        listener.listen(16)
        listener.setblocking(False)
        address = listener.getsockname()
        street = Street(listener, max_connections=1)
        street.service.client_accepted()
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        client.setblocking(False)
        street.clients.append(client)
        await street.pass_time(PATIENCE_S + 1)
        assert (await street.hear(client)).startswith(b"HTTP/1.1 503 ")
        street.service.client_closed("")
        await street.close()

    runner.run(main())


# -- the system has none


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_without_a_descriptor_the_spare_one_says_no_and_then_all_goes_on(
    runner: asyncio.Runner, mode: str
) -> None:
    async def main() -> None:
        street = Street(door(), mode=mode)
        clients = street.knock(5)
        for client in clients:
            client.send(GET)
        with no_descriptor_left():
            await street.until(lambda: street.counters.pauses["system"])
            accepting = [street.service.listeners.is_accepting]
            # Nothing is asked of the kernel between two ticks: that would be a busy loop.
            before = street.counters.pauses["system"]
            await street.turns(100)
            assert street.counters.pauses["system"] == before
            await street.pass_time(PATIENCE_S + 0.75)
            said = [await street.hear(client) for client in clients]
        assert all(one.startswith(b"HTTP/1.1 503 ") == (mode == "http") for one in said)
        assert street.counters.rejected["no_descriptors"] == 5
        assert street.counters.connections == 0
        street.knock(3)
        await street.pass_time(0.25)
        await street.until(lambda: street.counters.connections == 3)
        accepting.append(street.service.listeners.is_accepting)
        assert accepting == [False, True]
        await street.close()

    runner.run(main())


def test_who_waits_while_the_system_has_none_is_in_as_soon_as_it_has(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        street = Street(door(), mode="tcp")
        street.knock(5)
        with no_descriptor_left():
            await street.until(lambda: street.counters.pauses["system"])
            await street.pass_time(1.0)
        await street.pass_time(0.25)
        await street.until(lambda: street.counters.connections == 5)
        assert street.counters.rejected["no_descriptors"] == 0
        await street.close()

    runner.run(main())


def test_at_the_end_who_cannot_be_taken_is_told_so(runner: asyncio.Runner) -> None:
    async def main() -> None:
        street = Street(door())
        with no_descriptor_left():
            await street.pass_time(0.25)
        street.service.listeners._own[0]._pause()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = street.knock(3)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            street.service.drain()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            assert (await street.hear(client)).startswith(b"HTTP/1.1 503 ")
        await street.close()

    runner.run(main())


class Troubled(socket.socket):
    """A listener whose first accepts fail."""

    troubles: list[int]

    def _accept(self) -> tuple[int, Any]:
        if self.troubles:
            raise OSError(self.troubles.pop(), "trouble")
        accepted: tuple[int, Any] = super()._accept()  # type: ignore[misc]
        return accepted


@pytest.mark.parametrize("trouble", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
def test_one_that_is_gone_already_does_not_end_the_draining(
    runner: asyncio.Runner, trouble: int
) -> None:
    async def main() -> None:
        street = Street(door(), mode="tcp")
        (acceptor,) = street.service.listeners._own
        acceptor._pause()
        troubled = Troubled(fileno=acceptor.listener.detach())
        troubled.setblocking(False)
        troubled.troubles = [trouble, trouble]
        acceptor.listener = troubled
        street.knock(3)
        street.service.listeners.drain()
        assert street.counters.connections == 3
        await street.close()

    runner.run(main())


# -- making room


def test_who_has_been_idle_for_longest_makes_room(runner: asyncio.Runner) -> None:
    async def main() -> None:
        street = Street(door(), max_connections=40)
        idle = []
        for _ in range(40):
            (client,) = street.knock()
            await street.until(lambda: len(street.service.clients) == len(street.clients))
            idle.append(client)
            await street.pass_time(0.25)
        assert street.counters.connections == 40
        # The last ones have not been idle for long enough to be in the way.
        street.knock()
        await street.until(lambda: street.counters.connections == 41)
        assert await street.hear(idle[0]) == b""
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)
        await street.close()

    runner.run(main())


def test_who_is_busy_is_not_idle(runner: asyncio.Runner) -> None:
    async def main() -> None:
        street = Street(door(), max_connections=1)
        (busy,) = street.knock()
        await street.until(lambda: street.counters.connections == 1)
        busy.send(GET[:10])
        client = cast("ClientConnection", next(iter(street.service.clients)))
        await street.until(lambda: client.buffer)
        street.knock()
        await street.pass_time(1.75)
        with pytest.raises(BlockingIOError):
            busy.recv(1)
        await street.close()

    runner.run(main())


# -- one client


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_client_with_too_many_connections_is_told_so_and_others_are_not(
    runner: asyncio.Runner, mode: str
) -> None:
    async def main() -> None:
        street = Street(door(), mode=mode, limits=Limits(connections_per_client=2))
        first, _, third = street.knock(3)
        third.send(GET)
        said = await street.hear(third)
        assert said.startswith(b"HTTP/1.1 429 ") if mode == "http" else said == b""
        assert street.counters.rejected["client_limit"] == 1
        assert street.counters.active == 2
        if mode == "http":
            with socket.socket() as other:
                other.bind(("127.0.0.2", 0))
                other.connect(street.address)
                await street.until(lambda: street.counters.active == 3)
            await street.until(lambda: street.counters.active == 2)
            first.close()
            await street.until(lambda: street.counters.active == 1)
            street.knock()
            await street.until(lambda: street.counters.active == 2)
            assert street.counters.rejected["client_limit"] == 1
        await street.close()
        assert len(street.service.client_limit) == 0

    runner.run(main())


def test_a_share_is_of_what_the_proxy_can_take(runner: asyncio.Runner) -> None:
    async def main() -> None:
        share = Limits(connections_per_client=0.5)
        street = Street(door(), descriptors=RESERVE + 1 + 40, limits=share)
        assert street.service.client_limit.most == 10
        await street.close()
        street = Street(door(), max_connections=8, limits=share)
        assert street.service.client_limit.most == 4
        await street.close()

    runner.run(main())


def test_a_trusted_proxy_comes_for_many(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(connections_per_client=1)
        street = Street(door(), limits=limits, trusted_proxies=("127.0.0.0/8",))
        street.knock(3)
        await street.until(lambda: street.counters.active == 3)
        assert street.counters.rejected["client_limit"] == 0
        await street.close()

    runner.run(main())


def test_few_who_were_told_no_are_waited_for(runner: asyncio.Runner) -> None:
    async def main() -> None:
        street = Street(door(), limits=Limits(connections_per_client=1))
        street.knock()
        await street.until(lambda: street.counters.active == 1)
        before = descriptors()
        clients = street.knock(3 * MAX_LINGERING)
        await street.until(lambda: street.counters.rejected["client_limit"] == len(clients))
        assert descriptors() - before - len(clients) <= MAX_LINGERING
        # They never hang up, and are not waited for for long.
        await street.pass_time(2.75)
        assert descriptors() - before == len(clients)
        await street.close()

    runner.run(main())
