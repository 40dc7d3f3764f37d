"""Events reach every subscriber, in order and bounded, and no descriptor is leaked."""

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


def handle_of_a_message() -> socket.socket:
    """A descriptor as it comes with a message; the subscriber that takes the event owns it."""
    kept, theirs = socket.socketpair()
    theirs.close()
    return kept


@pytest.fixture(autouse=True)
def none_lost() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


async def rest(subscription: Subscription) -> list[Any]:
    """The messages up to the end."""
    async with asyncio.timeout(10):
        return [one.message async for one in subscription]


async def test_every_subscriber_gets_all_events_in_order() -> None:
    events = Events()
    subscribers = [events.subscribe() for _ in range(3)]
    for number in range(4):
        events.publish(event(number))
    events.close()
    for subscriber in subscribers:
        assert await rest(subscriber) == [0, 1, 2, 3]


async def test_a_subscriber_gets_only_events_after_its_subscription() -> None:
    events = Events()
    events.publish(event(1))
    late = events.subscribe()
    events.publish(event(2))
    events.close()
    assert await rest(late) == [2]


async def test_a_waiting_subscriber_is_woken_by_an_event_and_by_the_end() -> None:
    events = Events()
    subscriber = events.subscribe()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(rest(subscriber))
        await asyncio.sleep(0)
        events.publish(event(1))
        await asyncio.sleep(0)
        events.close()
    assert waiting.result() == [1]


async def test_after_the_end_a_subscription_ends_at_once() -> None:
    events = Events()
    events.close()
    assert await rest(events.subscribe()) == []


async def test_a_slow_subscriber_loses_the_oldest_events_and_their_number_is_counted() -> None:
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
    events.publish(event(handle=handle_of_a_message()))
    for number in range(MAX_WAITING):
        events.publish(event(number))
    assert descriptors() == before
    slow.close()


def test_a_descriptor_without_a_subscriber_is_closed() -> None:
    before = descriptors()
    Events().publish(event(handle=handle_of_a_message()))
    assert descriptors() == before


async def test_each_subscriber_gets_a_descriptor_of_its_own() -> None:
    events = Events()
    subscribers = [events.subscribe(), events.subscribe()]
    sent = handle_of_a_message()
    inode = os.fstat(sent.fileno()).st_ino
    events.publish(event(handle=sent))
    received = [await anext(subscriber) for subscriber in subscribers]
    handles = [one.handle for one in received if one.handle is not None]
    assert len({handle.fileno() for handle in handles}) == 2
    for handle in handles:
        with closing(handle):
            assert os.fstat(handle.fileno()).st_ino == inode


async def test_without_free_descriptors_other_subscribers_get_the_event_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Scarce(socket.socket):
        def dup(self) -> "Scarce":
            raise OSError(24, "Too many open files")

    events = Events()
    subscribers = [events.subscribe(), events.subscribe()]
    with handle_of_a_message() as plain:
        events.publish(event(7, handle=Scarce(fileno=os.dup(plain.fileno()))))
    received = [await anext(subscriber) for subscriber in subscribers]
    handles = [one.handle for one in received if one.handle is not None]
    assert [one.message for one in received] == [7, 7]
    assert len(handles) == 1
    handles[0].close()
    assert "web/0: what came with a message is not copied: Too many open files" in caplog.text


def test_a_closed_subscription_closes_its_descriptors_and_accepts_no_events() -> None:
    events = Events()
    before = descriptors()
    subscriber = events.subscribe()
    events.publish(event(handle=handle_of_a_message()))
    subscriber.close()
    assert descriptors() == before
    events.publish(event(handle=handle_of_a_message()))
    assert descriptors() == before


def test_a_subscription_without_references_closes_its_descriptors() -> None:
    events = Events()
    before = descriptors()
    subscriber = events.subscribe()
    events.publish(event(handle=handle_of_a_message()))
    del subscriber
    assert descriptors() == before
    events.publish(event(handle=handle_of_a_message()))
    assert descriptors() == before


def test_events_are_counted_by_slot_and_name_even_without_subscribers() -> None:
    events = Events()
    events.publish(Event(name="setup", role="supervisor"))
    for slot in (0, 0, 1):
        events.publish(Event(name="exit", role="worker", service="web", slot=slot, code=1))
    events.publish(Event(name="fork", role="worker", service="web", slot=1))
    assert events.counts_of("worker", "web", 0) == {"exit": 2}
    assert events.counts_of("worker", "web", 1) == {"exit": 1, "fork": 1}
    assert events.counts_of("proxy", "", 0) == {}


def test_each_event_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock.supervisor")
    events = Events()
    events.publish(Event(name="setup", role="supervisor", text="open"))
    events.publish(Event(name="error", role="proxy", slot=0, text="x" * 1000))
    assert [record.getMessage() for record in caplog.records] == [
        "supervisor: setup open",
        f"proxy/0: error {'x' * 200}",
    ]
