"""Events reach everybody who listens, in order and bounded, and no descriptor is lost."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.children.events import MAX_WAITING, Event, Events, Subscription


def event(number: int = 0, **more: Any) -> Event:
    return Event(name="message", role="worker", service="web", slot=0, message=number, **more)


def given() -> socket.socket:
    """A descriptor as it comes with a message; who has the event owns it."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


@pytest.fixture(autouse=True)
def none_lost() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


async def rest(subscription: Subscription) -> list[Any]:
    """The messages up to the end."""
    async with asyncio.timeout(10):
        return [one.message async for one in subscription]


async def test_everybody_hears_everything_in_order() -> None:
    events = Events()
    listeners = [events.subscribe() for _ in range(3)]
    for number in range(4):
        events.publish(event(number))
    events.close()
    for listener in listeners:
        assert await rest(listener) == [0, 1, 2, 3]


async def test_a_listener_hears_what_happens_after_it_came() -> None:
    events = Events()
    events.publish(event(1))
    late = events.subscribe()
    events.publish(event(2))
    events.close()
    assert await rest(late) == [2]


async def test_who_waits_is_woken_by_an_event_and_by_the_end() -> None:
    events = Events()
    listener = events.subscribe()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(rest(listener))
        await asyncio.sleep(0)
        events.publish(event(1))
        await asyncio.sleep(0)
        events.close()
    assert waiting.result() == [1]


async def test_after_the_end_there_is_nothing_to_wait_for() -> None:
    events = Events()
    events.close()
    assert await rest(events.subscribe()) == []


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    events = Events()
    slow = events.subscribe()
    for number in range(MAX_WAITING + 3):
        events.publish(event(number))
    events.close()
    assert slow.dropped == 3
    assert await rest(slow) == list(range(3, MAX_WAITING + 3))


async def test_dropped_events_close_their_descriptors() -> None:
    events = Events()
    slow = events.subscribe()
    before = descriptors()
    events.publish(event(handle=given()))
    for number in range(MAX_WAITING):
        events.publish(event(number))
    assert descriptors() == before
    slow.close()


def test_a_descriptor_that_nobody_listens_for_is_closed() -> None:
    before = descriptors()
    Events().publish(event(handle=given()))
    assert descriptors() == before


async def test_each_listener_has_a_descriptor_of_its_own() -> None:
    events = Events()
    listeners = [events.subscribe(), events.subscribe()]
    sent = given()
    inode = os.fstat(sent.fileno()).st_ino
    events.publish(event(handle=sent))
    heard = [await anext(listener) for listener in listeners]
    handles = [one.handle for one in heard if one.handle is not None]
    assert len({handle.fileno() for handle in handles}) == 2
    for handle in handles:
        with closing(handle):
            assert os.fstat(handle.fileno()).st_ino == inode


async def test_without_descriptors_to_spare_the_others_hear_it_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Scarce(socket.socket):
        def dup(self) -> "Scarce":
            raise OSError(24, "Too many open files")

    events = Events()
    listeners = [events.subscribe(), events.subscribe()]
    with given() as plain:
        events.publish(event(7, handle=Scarce(fileno=os.dup(plain.fileno()))))
    heard = [await anext(listener) for listener in listeners]
    handles = [one.handle for one in heard if one.handle is not None]
    assert [one.message for one in heard] == [7, 7]
    assert len(handles) == 1
    handles[0].close()
    assert "web/0: what came with a message is not copied: Too many open files" in caplog.text


def test_a_closed_subscription_lets_go_of_what_it_had_and_takes_no_more() -> None:
    events = Events()
    before = descriptors()
    listener = events.subscribe()
    events.publish(event(handle=given()))
    listener.close()
    assert descriptors() == before
    events.publish(event(handle=given()))
    assert descriptors() == before


def test_a_forgotten_subscription_keeps_nothing() -> None:
    events = Events()
    before = descriptors()
    listener = events.subscribe()
    events.publish(event(handle=given()))
    del listener
    assert descriptors() == before
    events.publish(event(handle=given()))
    assert descriptors() == before


def test_everything_is_counted_by_slot_and_name_even_if_nobody_listens() -> None:
    events = Events()
    events.publish(Event(name="setup", role="supervisor"))
    for slot in (0, 0, 1):
        events.publish(Event(name="exit", role="worker", service="web", slot=slot, code=1))
    events.publish(Event(name="fork", role="worker", service="web", slot=1))
    assert events.counts_of("worker", "web", 0) == {"exit": 2}
    assert events.counts_of("worker", "web", 1) == {"exit": 1, "fork": 1}
    assert events.counts_of("proxy", "", 0) == {}


def test_each_is_a_line_for_who_wants_to_see_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock.supervisor")
    events = Events()
    events.publish(Event(name="setup", role="supervisor", text="open"))
    events.publish(Event(name="error", role="proxy", slot=0, text="x" * 1000))
    assert [record.getMessage() for record in caplog.records] == [
        "supervisor: setup open",
        f"proxy/0: error {'x' * 200}",
    ]
