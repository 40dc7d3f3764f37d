"""A proxy accepts by its own listeners, and by those of one that is away until it is back."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvloop

from penstock_proxy.errors import Fault
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.listener.listeners import AdmissionControl, Listeners
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net.stream import Stream

AWAY = 7


class House(AdmissionControl):
    """Listeners, and the ports of the clients that came in by them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self._loop, self._stack = loop, stack
        self.own, self.other = self._listener(), self._listener()
        self.came: list[int] = []
        self.left = 1000
        self.fd_budget = FdBudget(1024, 1, 0)
        self.listeners = Listeners(
            loop, (self.own.dup().detach(),), self.fd_budget, self, 2.0, self._deliver
        )
        stack.callback(self.listeners.drain)

    def _listener(self) -> socket.socket:
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        return listener

    # What the listeners ask.

    def room(self) -> int:
        return self.left

    def crowded(self) -> None: ...

    def exhausted(self) -> None: ...

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        raise AssertionError("there is room, or time")

    def _deliver(self, stream: Stream, peer: Any) -> None:
        stream.close()
        self.came.append(peer[1])

    def cover(self) -> None:
        self.listeners.cover(AWAY, self.other.dup())

    def knock(self, listener: socket.socket) -> int:
        client = self._stack.enter_context(socket.create_connection(listener.getsockname()))
        port: int = client.getsockname()[1]
        return port

    def turn(self, until: Callable[[], object]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(10):
                while not until():  # noqa: ASYNC110 — nothing sets an event for us
                    await asyncio.sleep(0)

        self._loop.run_until_complete(wait())

    def turns(self) -> None:
        """Whatever is ready has happened after that."""
        seen = iter(range(5))
        self.turn(lambda: next(seen, None) is None)


@pytest.fixture
def house() -> Iterator[House]:
    loop = uvloop.new_event_loop()
    with ExitStack() as stack:
        stack.callback(loop.close)
        yield House(loop, stack)


def test_it_accepts_from_its_own_and_from_what_it_covers(house: House) -> None:
    house.listeners.start()
    house.cover()
    knocked = [house.knock(house.own), house.knock(house.other)]
    house.turn(lambda: len(house.came) == 2)
    assert sorted(house.came) == sorted(knocked)
    assert house.fd_budget.listeners == 2


def test_what_waited_there_before_is_taken_too(house: House) -> None:
    waits = house.knock(house.other)
    house.listeners.start()
    house.cover()
    house.turn(lambda: house.came)
    assert house.came == [waits]


def test_when_it_is_back_what_waits_is_its_own(house: House) -> None:
    house.listeners.start()
    house.cover()
    house.listeners.uncover(AWAY)
    house.listeners.uncover(AWAY)
    waits = house.knock(house.other)
    own = house.knock(house.own)
    house.turn(lambda: house.came == [own])
    house.turns()
    assert waits not in house.came
    theirs, (_, port) = house.other.accept()
    theirs.close()
    assert port == waits, "the socket itself is as it was"
    assert house.fd_budget.listeners == 1


def test_told_twice_it_has_it_once(house: House) -> None:
    house.listeners.start()
    house.cover()
    house.cover()
    assert house.fd_budget.listeners == 2
    waits = house.knock(house.other)
    house.turn(lambda: house.came)
    assert house.came == [waits]


def test_without_room_nobody_comes_in_by_any_way(house: House) -> None:
    house.listeners.start()
    house.cover()
    house.left = 0
    knocked = [house.knock(house.own), house.knock(house.other)]
    house.turns()
    assert house.came == []
    house.left = 1000
    house.listeners.resume()
    house.turn(lambda: sorted(house.came) == sorted(knocked))


def test_a_proxy_that_leaves_takes_what_waits_everywhere_and_covers_nobody(house: House) -> None:
    house.listeners.start()
    house.cover()
    house.left = 0
    knocked = [house.knock(house.own), house.knock(house.other)]
    house.turns()
    house.listeners.drain()
    assert sorted(house.came) == sorted(knocked)
    late = house.other.dup()
    house.listeners.cover(AWAY + 1, late)
    assert late.fileno() == -1, "closed, by whom it was given to"
