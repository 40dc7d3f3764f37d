"""Events of a run for subscribers, with the names of Node's cluster module, and those of roll-outs.

Owns the subscriptions, and a count of each event in each slot. An event is emitted once, when it
happens. A slow subscriber does not delay the run: its queue is bounded, and beyond the bound the
oldest events are dropped and counted. An event may carry a descriptor. The subscriber that takes
the event closes it; descriptors that nobody takes are closed here.
"""

import asyncio
import logging
import socket
from collections import Counter, deque
from dataclasses import dataclass, replace
from time import time  # noqa: TID251 — an event has a time of day
from typing import Any, Final, Literal, Self
from weakref import WeakSet, finalize

MAX_WAITING: Final = 1024
"""Events that may wait for one subscriber."""

EventName = Literal[
    "setup", "fork", "online", "listening", "disconnect", "exit", "error", "message", "retire",
    "giveup", "rollout",
]  # fmt: skip
EVENT_NAMES: Final[tuple[EventName, ...]] = (
    "setup", "fork", "online", "listening", "disconnect", "exit", "error", "message", "retire",
    "giveup", "rollout",
)  # fmt: skip
Role = Literal["supervisor", "proxy", "worker"]

_log = logging.getLogger("penstock.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, and the child that it is about."""

    name: EventName
    role: Role
    service: str = ""
    """Empty for the supervisor, and for a proxy, which serves all services."""
    slot: int | None = None
    pid: int | None = None
    at: float = 0.0
    """Time of day, seconds since 1970."""
    code: int | None = None
    """Of exit: the status."""
    signal: str = ""
    """Of exit: the signal that ended it, such as SIGKILL."""
    text: str = ""
    """The reason, for people; of listening: the address."""
    message: Any = None
    """Of message: the worker's message, any JSON value. Of rollout: what `rollout.records` says of
    it, as a table."""
    handle: socket.socket | None = None
    """Of message: the socket that came with it. Close it."""

    @property
    def who(self) -> str:
        """The name of the child, as in logs."""
        return self.role if self.slot is None else f"{self.service or self.role}/{self.slot}"


class Subscription:
    """The queue of one subscriber: `async for event in subscription`.

    It ends when the run is over, or with `close`. It is also closed when the last reference to
    it is gone, for example after a `break` out of the loop.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """Events that were dropped because the queue was full."""
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        finalize(self, _discard_all, self._events)

    def put(self, event: Event) -> None:
        if self._closed:
            _discard(event)
            return
        if len(self._events) == MAX_WAITING:
            self.dropped += 1
            _discard(self._events.popleft())
        self._events.append(event)
        self._changed.set()

    def end(self) -> None:
        """Accept no more events; those in the queue can still be taken."""
        self._closed = True
        self._changed.set()

    def close(self) -> None:
        """End it, and discard the events in the queue."""
        self.end()
        _discard_all(self._events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()


class Events:
    """Counts events and passes them to all subscribers."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, int, str]] = Counter()
        """By role, service, slot and name."""
        # Weak, so that a subscription that was forgotten does not keep its events for ever.
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._closed = False

    def emit(
        self,
        name: EventName,
        role: Role,
        service: str = "",
        slot: int | None = None,
        pid: int | None = None,
        **details: Any,
    ) -> None:
        """Emit an event that happened just now."""
        self.publish(
            Event(name=name, role=role, service=service, slot=slot, pid=pid, at=time(), **details)
        )

    def publish(self, event: Event) -> None:
        """Pass the event to all subscribers. Each of several gets a copy of the handle."""
        if event.slot is not None:
            self.counts[event.role, event.service, event.slot, event.name] += 1
        # At DEBUG only: the caller logs whatever people have to know.
        _log.debug("%s: %s %.200s", event.who, event.name, event.text)
        subscriptions = tuple(self._subscriptions)
        for subscription in subscriptions[1:]:
            subscription.put(_copy(event))
        if subscriptions:
            subscriptions[0].put(event)
        else:
            _discard(event)

    def subscribe(self) -> Subscription:
        """A subscription to all events from now on, until `close`."""
        subscription = Subscription()
        if self._closed:
            subscription.end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """The run is over: subscriptions end after the events in their queues."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription.end()
        self._subscriptions.clear()

    def counts_of(self, role: str, service: str, slot: int) -> dict[str, int]:
        """How often each event happened in one slot, without those that never did."""
        counts = {name: self.counts[role, service, slot, name] for name in EVENT_NAMES}
        return {name: count for name, count in counts.items() if count}


def _copy(event: Event) -> Event:
    if event.handle is None:
        return event
    try:
        return replace(event, handle=event.handle.dup())
    except OSError as error:
        # No descriptors are left. The other subscribers get the event without the handle.
        _log.warning("%s: what came with a message is not copied: %s", event.who, error.strerror)
        return replace(event, handle=None)


def _discard(event: Event) -> None:
    if event.handle is not None:
        event.handle.close()


def _discard_all(events: deque[Event]) -> None:
    while events:
        _discard(events.popleft())
