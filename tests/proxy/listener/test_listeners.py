"""A proxy accepts from its own listeners, and from others while they are taken over."""

import asyncio
import socket
from collections import deque
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


class Harness(AdmissionControl):
    """Listeners, and the ports of the clients that were accepted from them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self._loop, self._stack = loop, stack
        self.own, self.other = self._listener(), self._listener()
        self.own_port, self.other_port = (one.getsockname()[1] for one in (self.own, self.other))
        self.accepted: list[int] = []
        self.room_left = 1000
        self.fd_budget = FdBudget(1024, 0, 0)
        self.listeners = Listeners(
            loop, (self.own.dup().detach(),), self.fd_budget, self, 2.0, self._deliver
        )
        stack.callback(self.listeners.drain)

    def _listener(self) -> socket.socket:
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        return listener

    # What the listeners call.

    def room(self) -> int:
        return self.room_left

    def no_room(self) -> None: ...

    def resources_exhausted(self) -> None: ...

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        raise AssertionError("there is room, or time")

    def _deliver(self, stream: Stream, peer: Any) -> None:
        stream.close()
        self.accepted.append(peer[1])

    def take_over(self) -> None:
        self.listeners.take_over(AWAY, self.other.dup())

    def connect(self, listener: socket.socket) -> int:
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
        """Let the loop handle what is ready."""
        seen = iter(range(5))
        self.turn(lambda: next(seen, None) is None)


@pytest.fixture
def harness() -> Iterator[Harness]:
    loop = uvloop.new_event_loop()
    with ExitStack() as stack:
        stack.callback(loop.close)
        yield Harness(loop, stack)


def test_a_proxy_accepts_from_its_own_listeners_and_from_those_taken_over(harness: Harness) -> None:
    harness.listeners.start()
    harness.take_over()
    ports = [harness.connect(harness.own), harness.connect(harness.other)]
    harness.turn(lambda: len(harness.accepted) == 2)
    assert sorted(harness.accepted) == sorted(ports)
    assert harness.fd_budget.listeners == 2


def test_clients_that_waited_before_the_takeover_are_accepted_too(harness: Harness) -> None:
    waits = harness.connect(harness.other)
    harness.listeners.start()
    harness.take_over()
    harness.turn(lambda: harness.accepted)
    assert harness.accepted == [waits]


def test_clients_that_wait_when_a_listener_is_given_back_are_left_to_its_proxy(
    harness: Harness,
) -> None:
    harness.listeners.start()
    harness.take_over()
    harness.listeners.give_back(AWAY)
    harness.listeners.give_back(AWAY)
    waits = harness.connect(harness.other)
    own = harness.connect(harness.own)
    harness.turn(lambda: harness.accepted == [own])
    harness.turns()
    assert waits not in harness.accepted
    theirs, (_, port) = harness.other.accept()
    theirs.close()
    assert port == waits, "the socket is still open and listens"
    assert harness.fd_budget.listeners == 1


def test_a_listener_that_is_taken_over_twice_is_watched_once(harness: Harness) -> None:
    harness.listeners.start()
    harness.take_over()
    harness.take_over()
    assert harness.fd_budget.listeners == 2
    waits = harness.connect(harness.other)
    harness.turn(lambda: harness.accepted)
    assert harness.accepted == [waits]


def test_without_room_nothing_is_accepted_from_any_listener(harness: Harness) -> None:
    harness.listeners.start()
    harness.take_over()
    harness.room_left = 0
    ports = [harness.connect(harness.own), harness.connect(harness.other)]
    harness.turns()
    assert harness.accepted == []
    harness.room_left = 1000
    harness.listeners.resume()
    harness.turn(lambda: sorted(harness.accepted) == sorted(ports))


def test_draining_accepts_waiting_clients_of_all_listeners_and_takes_none_over(
    harness: Harness,
) -> None:
    harness.listeners.start()
    harness.take_over()
    harness.room_left = 0
    ports = [harness.connect(harness.own), harness.connect(harness.other)]
    harness.turns()
    harness.listeners.drain()
    assert sorted(harness.accepted) == sorted(ports)
    late = harness.other.dup()
    harness.listeners.take_over(AWAY + 1, late)
    assert late.fileno() == -1, "it closes what it is given"


def test_a_listener_is_added_and_those_before_it_are_closed_when_their_queues_are_empty(
    harness: Harness,
) -> None:
    listeners = harness.listeners
    waits = harness.connect(harness.own)
    listeners.add(harness.other.dup())
    assert listeners.port == harness.other.getsockname()[1]
    listeners.start()
    harness.own.close()
    deque(listeners.keep_newest(1))
    assert harness.accepted == [waits]
    assert harness.fd_budget.listeners == 1
    later = harness.connect(harness.other)
    harness.turn(lambda: len(harness.accepted) == 2)
    assert harness.accepted == [waits, later]


def test_a_listener_that_is_added_again_is_the_newest(harness: Harness) -> None:
    listeners = harness.listeners
    listeners.start()
    listeners.add(harness.other.dup())
    listeners.add(harness.own.dup())
    assert harness.fd_budget.listeners == 2
    deque(listeners.keep_newest(1))
    assert listeners.port == harness.own.getsockname()[1]
    client = harness.connect(harness.own)
    harness.turn(lambda: harness.accepted == [client])


def test_of_a_proxy_that_is_away_the_address_that_is_kept_stays_and_no_other(
    harness: Harness,
) -> None:
    listeners = harness.listeners
    listeners.start()
    listeners.add(harness.other.dup())
    listeners.take_over(AWAY, harness.own.dup())
    listeners.take_over(AWAY, harness.other.dup())
    listeners.take_over(AWAY + 1, harness.own.dup())
    harness.room_left = 0
    waits = harness.connect(harness.own)
    harness.turns()
    harness.room_left = 1000
    # Back to where it was: the newer address goes.
    listeners.add(harness.own.dup())
    deque(listeners.keep_newest(1))
    assert harness.fd_budget.listeners == 3
    harness.other.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", harness.other_port))
    # And for good to the other one, although the proxies that are away have none there.
    newest = harness._listener()
    listeners.add(newest.dup())
    deque(listeners.keep_newest(1))
    assert harness.accepted == [waits]
    assert harness.fd_budget.listeners == 1
    harness.own.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", harness.own_port))


def test_what_is_accepted_from_now_on_goes_elsewhere(harness: Harness) -> None:
    elsewhere: list[int] = []

    def deliver(stream: Stream, peer: Any) -> None:
        stream.close()
        elsewhere.append(peer[1])

    harness.listeners.start()
    harness.take_over()
    harness.listeners.configure(deliver, 5.0)
    ports = [harness.connect(harness.own), harness.connect(harness.other)]
    harness.turn(lambda: len(elsewhere) == 2)
    assert (sorted(elsewhere), harness.accepted) == (sorted(ports), [])


def test_a_drained_service_takes_no_more_listeners(harness: Harness) -> None:
    harness.listeners.drain()
    harness.listeners.add(harness.other.dup())
    harness.take_over()
    assert harness.fd_budget.listeners == 0
    assert not harness.listeners.is_accepting
    assert harness.listeners.port == 0
