"""Nobody is accepted without room, and nobody who was told yes by the kernel is lost."""

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
    """Let the loop look at its sockets: what is ready has happened after that."""
    for _ in range(loop_turns):
        await asyncio.sleep(0)


class Door:
    """A listener, an acceptor, and who came in by it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.room = 1000
        self.came: list[int] = []
        """Ports of the clients, in the order of their delivery."""
        self.clients: list[socket.socket] = []
        self.follow = 0
        """So many more come while others are let in, one by one."""
        self._streams: list[Stream] = []

    def open(self) -> Acceptor:
        return Acceptor(asyncio.get_running_loop(), self.listener, lambda: self.room, self._deliver)

    def knock(self, times: int = 1) -> None:
        """The kernel completes a connection without asking us."""
        for _ in range(times):
            self.clients.append(socket.create_connection(self.address))

    @property
    def knocked(self) -> list[int]:
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
        self.came.append(peer[1])
        self._streams.append(stream)
        if self.follow:
            self.follow -= 1
            self.knock()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def test_nobody_comes_in_before_the_start(runner: asyncio.Runner, door: Door) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.knock()
        acceptor.resume()
        await turns()
        assert door.came == []
        acceptor.start()
        await until(lambda: door.came)
        assert door.came == door.knocked
        acceptor.drain()

    runner.run(main())


def test_everybody_comes_in_in_their_order(runner: asyncio.Runner, door: Door) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.knock(40)
        acceptor.start()
        await until(lambda: len(door.came) == 40)
        assert door.came == door.knocked
        acceptor.drain()

    runner.run(main())


def test_without_room_the_kernel_holds_them(runner: asyncio.Runner, door: Door) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.room = 2
        door.knock(5)
        acceptor.start()
        await until(lambda: len(door.came) == 2)
        await turns()
        assert len(door.came) == 2
        door.room = 1
        acceptor.resume()
        acceptor.resume()
        await until(lambda: len(door.came) == 3)
        await turns()
        assert door.came == door.knocked[:3]
        door.room = 10
        acceptor.resume()
        await until(lambda: len(door.came) == 5)
        acceptor.drain()

    runner.run(main())


def test_when_descriptors_run_out_it_waits_and_says_so_once(
    runner: asyncio.Runner, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.knock(2)
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
        assert door.came == []
        assert [record.getMessage() for record in caplog.records] == [
            "cannot accept: Too many open files; trying again until it can"
        ]
        acceptor.resume()
        await until(lambda: len(door.came) == 2)
        acceptor.drain()

    runner.run(main())


@pytest.mark.parametrize("full", ["service", "descriptors"])
def test_the_next_one_comes_in_when_one_leaves_and_waits_for_no_tick(
    runner: asyncio.Runner, door: Door, full: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        config = ServiceConfig(
            name="web",
            listeners=(door.listener.fileno(),),
            targets=(),
            max_connections=2 if full == "service" else 0,
            limits=Limits(connections_per_client=0),
            access_log="off",
        )
        fd_budget = FdBudget(RESERVE + 4 if full == "descriptors" else 1024, 0, 0)
        timers = TimerWheel(loop.time())
        service = Service(loop, Reactor(loop), config, timers, fd_budget, None, lambda *_: None)
        service.listeners.start()
        door.knock(5)
        door.listener.detach()
        counters = service.counters
        for client, expected in zip(door.clients, (2, 3, 4, 5, 5), strict=True):
            await until(partial(lambda count: counters.connections == count, expected))
            await turns()
            assert counters.connections == expected
            client.close()
        await until(lambda: not service.clients)
        service.drain()

    runner.run(main())


def test_draining_takes_whom_the_kernel_let_in_and_nobody_after(
    runner: asyncio.Runner, door: Door
) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.room = 0
        acceptor.start()
        door.knock(20)
        await turns()
        assert door.came == []
        acceptor.drain()
        assert door.came == door.knocked
        assert door.listener.fileno() == -1
        with pytest.raises(ConnectionRefusedError):
            door.knock()
        acceptor.drain()
        acceptor.resume()
        await turns()

    runner.run(main())


def test_draining_ends_though_new_ones_come_as_fast_as_they_are_let_in(
    runner: asyncio.Runner, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 30
    monkeypatch.setattr(acceptor_module, "max_backlog", lambda: most)

    async def main() -> None:
        acceptor = door.open()
        acceptor.start()
        door.knock(20)
        door.follow = 2 * most
        acceptor.drain()
        assert len(door.came) == most + 1, "as many as the kernel lets wait"
        assert door.listener.fileno() == -1

    runner.run(main())


def test_draining_what_never_started_leaves_its_clients_to_others(
    runner: asyncio.Runner, door: Door
) -> None:
    async def main() -> None:
        acceptor = door.open()
        door.knock()
        other = door.listener.dup()
        acceptor.drain()
        assert door.came == []
        with other:
            other.accept()[0].close()

    runner.run(main())


def test_an_error_that_nobody_planned_for_is_told_and_outlived(
    runner: asyncio.Runner, door: Door
) -> None:
    async def main() -> None:
        told: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        acceptor = door.open()
        acceptor.start()
        door.listener.shutdown(socket.SHUT_RDWR)  # from now on accept says EINVAL
        await until(lambda: told)
        await turns()
        (error,) = told  # once, and not in a busy loop
        assert isinstance(error, OSError)
        door.listener.listen()  # at another port: the kernel chose the first one
        door.address = door.listener.getsockname()
        door.knock()
        acceptor.resume()
        await until(lambda: door.came)
        acceptor.drain()

    runner.run(main())


def test_a_listener_that_cannot_be_drained_is_closed_all_the_same(
    runner: asyncio.Runner, door: Door
) -> None:
    async def main() -> None:
        acceptor = door.open()
        acceptor.start()
        door.listener.shutdown(socket.SHUT_RDWR)
        acceptor.drain()
        assert door.listener.fileno() == -1

    runner.run(main())
