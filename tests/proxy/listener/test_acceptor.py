"""Nothing is accepted without room, and no connection that the kernel has completed is lost."""

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import uvloop

from penstock_proxy.config import Limits, ServiceConfig
from penstock_proxy.listener import acceptor as acceptor_module
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import RESERVE, FdBudget
from penstock_worker.net.stream import Stream

DEADLINE_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 — nothing sets an event for us
            await asyncio.sleep(0.001)


async def turns(loop_turns: int = 5) -> None:
    """Let the loop handle what is ready."""
    for _ in range(loop_turns):
        await asyncio.sleep(0)


class Harness:
    """A listener, its acceptor, its clients, and what was accepted of them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.room = 1000
        self.accepted: list[int] = []
        """Ports of accepted clients, in the order of their delivery."""
        self.clients: list[socket.socket] = []
        self.more_clients = 0
        """So many more connect while others are accepted, one by one."""
        self._streams: list[Stream] = []

    def make_acceptor(self) -> Acceptor:
        return Acceptor(asyncio.get_running_loop(), self.listener, lambda: self.room, self._deliver)

    def connect(self, times: int = 1) -> None:
        """Connect clients; the kernel completes it without the acceptor."""
        for _ in range(times):
            self.clients.append(socket.create_connection(self.address))

    @property
    def ports(self) -> list[int]:
        return [client.getsockname()[1] for client in self.clients]

    def close(self) -> None:
        self.listener.close()
        for client in self.clients:
            client.close()
        for stream in self._streams:
            stream.close()

    def _deliver(self, stream: Stream, peer: tuple[str, int]) -> None:
        assert stream.family == socket.AF_INET
        assert not os.get_inheritable(stream.fileno())
        self.room -= 1
        self.accepted.append(peer[1])
        self._streams.append(stream)
        if self.more_clients:
            self.more_clients -= 1
            self.connect()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def test_nothing_is_accepted_before_the_start(runner: asyncio.Runner, harness: Harness) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.connect()
        acceptor.resume()
        await turns()
        assert harness.accepted == []
        acceptor.start()
        await until(lambda: harness.accepted)
        assert harness.accepted == harness.ports
        acceptor.drain()

    runner.run(main())


def test_all_are_accepted_in_their_order(runner: asyncio.Runner, harness: Harness) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.connect(40)
        acceptor.start()
        await until(lambda: len(harness.accepted) == 40)
        assert harness.accepted == harness.ports
        acceptor.drain()

    runner.run(main())


def test_without_room_the_kernel_holds_them(runner: asyncio.Runner, harness: Harness) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.room = 2
        harness.connect(5)
        acceptor.start()
        await until(lambda: len(harness.accepted) == 2)
        await turns()
        assert len(harness.accepted) == 2
        harness.room = 1
        acceptor.resume()
        acceptor.resume()
        await until(lambda: len(harness.accepted) == 3)
        await turns()
        assert harness.accepted == harness.ports[:3]
        harness.room = 10
        acceptor.resume()
        await until(lambda: len(harness.accepted) == 5)
        acceptor.drain()

    runner.run(main())


def test_when_descriptors_run_out_it_waits_and_logs_it_once(
    runner: asyncio.Runner, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.connect(2)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            acceptor.start()
            await until(lambda: caplog.records)
            for _ in range(3):
                acceptor.resume()
                await turns()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert harness.accepted == []
        assert [record.getMessage() for record in caplog.records] == [
            "cannot accept: Too many open files; trying again until it can"
        ]
        acceptor.resume()
        await until(lambda: len(harness.accepted) == 2)
        acceptor.drain()

    runner.run(main())


@pytest.mark.parametrize("full", ["service", "descriptors"])
def test_the_next_one_is_accepted_at_once_when_one_closes(
    runner: asyncio.Runner, harness: Harness, full: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        config = ServiceConfig(
            name="web",
            listeners=(harness.listener.fileno(),),
            targets=(),
            max_connections=2 if full == "service" else 0,
            limits=Limits(connections_per_client=0),
            access_log="off",
        )
        fd_budget = FdBudget(RESERVE + 5 if full == "descriptors" else 1024, 0, 0)
        timers = TimerWheel(loop.time())
        service = Service(loop, Reactor(loop), config, timers, fd_budget, None, lambda *_: None)
        service.listeners.start()
        harness.connect(5)
        harness.listener.detach()
        counters = service.counters
        for client, expected in zip(harness.clients, (2, 3, 4, 5, 5), strict=True):
            await until(partial(lambda count: counters.connections == count, expected))
            await turns()
            assert counters.connections == expected
            client.close()
        await until(lambda: not service.clients)
        service.drain()

    runner.run(main())


def test_draining_accepts_what_is_queued_and_nothing_after(
    runner: asyncio.Runner, harness: Harness
) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.room = 0
        acceptor.start()
        harness.connect(20)
        await turns()
        assert harness.accepted == []
        acceptor.drain()
        assert harness.accepted == harness.ports
        assert harness.listener.fileno() == -1
        with pytest.raises(ConnectionRefusedError):
            harness.connect()
        acceptor.drain()
        acceptor.resume()
        await turns()

    runner.run(main())


def test_one_is_accepted_in_each_step_of_draining_and_who_comes_between_two_is_not_lost(
    runner: asyncio.Runner, harness: Harness
) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.room = 0
        acceptor.start()
        harness.connect(20)
        steps = acceptor.draining()
        for number in range(1, 21):
            next(steps)
            assert len(harness.accepted) == number
        harness.connect()
        acceptor.resume()
        await turns()
        assert not acceptor.is_reading
        assert len([*steps]) == 1
        assert harness.accepted == harness.ports
        assert harness.listener.fileno() == -1

    runner.run(main())


def test_draining_ends_though_clients_connect_as_fast_as_they_are_accepted(
    runner: asyncio.Runner, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 30
    monkeypatch.setattr(acceptor_module, "max_backlog", lambda: most)

    async def main() -> None:
        acceptor = harness.make_acceptor()
        acceptor.start()
        harness.connect(20)
        harness.more_clients = 2 * most
        acceptor.drain()
        assert len(harness.accepted) == most + 1, "as many as the kernel can queue"
        assert harness.listener.fileno() == -1

    runner.run(main())


def test_draining_an_acceptor_that_never_started_leaves_its_clients_to_others(
    runner: asyncio.Runner, harness: Harness
) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        harness.connect()
        other = harness.listener.dup()
        acceptor.drain()
        assert harness.accepted == []
        with other:
            other.accept()[0].close()

    runner.run(main())


def test_an_unexpected_error_is_reported_and_survived(
    runner: asyncio.Runner, harness: Harness
) -> None:
    async def main() -> None:
        errors: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
        acceptor = harness.make_acceptor()
        acceptor.start()
        harness.listener.shutdown(socket.SHUT_RDWR)  # from now on accept says EINVAL
        await until(lambda: errors)
        await turns()
        (error,) = errors  # once, and not in a busy loop
        assert isinstance(error, OSError)
        harness.listener.listen()  # at another port: the kernel chose the first one
        harness.address = harness.listener.getsockname()
        harness.connect()
        acceptor.resume()
        await until(lambda: harness.accepted)
        acceptor.drain()

    runner.run(main())


def test_a_listener_that_cannot_be_drained_is_closed_all_the_same(
    runner: asyncio.Runner, harness: Harness
) -> None:
    async def main() -> None:
        acceptor = harness.make_acceptor()
        acceptor.start()
        harness.listener.shutdown(socket.SHUT_RDWR)
        acceptor.drain()
        assert harness.listener.fileno() == -1

    runner.run(main())
