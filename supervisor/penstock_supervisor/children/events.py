"""What happens in a run, to whoever listens: the events of Node's cluster, by the same names.

Owns who listens, and how often each thing happened. An event is told once, when it happens;
nobody who listens slowly can hold the run up: it has a bound, beyond which the oldest are
dropped and counted. An event may carry a descriptor; whoever takes the event closes it, and
what nobody takes is closed here.
"""

import asyncio
import logging
import socket
from collections import Counter, deque
from dataclasses import dataclass, replace
from time import time  # noqa: TID251 — an event tells the time of day
from typing import Any, Final, Literal, Self
from weakref import WeakSet, finalize

MAX_WAITING: Final = 1024
"""Events that wait for one listener."""

EventName = Literal[
    "setup", "fork", "online", "listening", "disconnect", "exit", "error", "message", "retire",
    "giveup",
]  # fmt: skip
EVENT_NAMES: Final[tuple[EventName, ...]] = (
    "setup", "fork", "online", "listening", "disconnect", "exit", "error", "message", "retire",
    "giveup",
)  # fmt: skip
Role = Literal["supervisor", "proxy", "worker"]

_log = logging.getLogger("penstock.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    name: EventName
    role: Role
    service: str = ""
    """Empty for the supervisor, and for a proxy, which serves all of them."""
    slot: int | None = None
    pid: int | None = None
    at: float = 0.0
    """Time of day, seconds since 1970."""
    code: int | None = None
    """Of exit: the status."""
    signal: str = ""
    """Of exit: the signal that ended it, such as SIGKILL."""
    text: str = ""
    """Why, for people; of listening: the address."""
    message: Any = None
    """Of message: what the worker said, any JSON value."""
    handle: socket.socket | None = None
    """Of message: what came with it. Close it."""

    @property
    def who(self) -> str:
        """As in logs."""
        return self.role if self.slot is None else f"{self.service or self.role}/{self.slot}"


class Subscription:
    """One listener's queue: `async for event in subscription`.

    It ends when the run is over, or with `close`. Whoever only stops reading, by `break` say,
    and keeps no reference has closed it too.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """Events that were too many."""
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
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
        self._news.set()

    def end(self) -> None:
        """There will be no more; what is there can still be taken."""
        self._closed = True
        self._news.set()

    def close(self) -> None:
        """Nobody listens any more."""
        self.end()
        _discard_all(self._events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()


class Events:
    """Where they are told."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, int, str]] = Counter()
        """By role, service, slot and name."""
        # Weak: who forgot his subscription does not want to have its events kept for ever.
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._closed = False

    def happened(
        self,
        name: EventName,
        role: Role,
        service: str = "",
        slot: int | None = None,
        pid: int | None = None,
        **details: Any,
    ) -> None:
        """Tell of something that happened just now."""
        self.emit(
            Event(name=name, role=role, service=service, slot=slot, pid=pid, at=time(), **details)
        )

    def emit(self, event: Event) -> None:
        """Tell it. With several listeners, each has a copy of the handle."""
        if event.slot is not None:
            self.counts[event.role, event.service, event.slot, event.name] += 1
        # What a person has to know, whoever reports it logs in full.
        _log.debug("%s: %s %.200s", event.who, event.name, event.text)
        subscriptions = tuple(self._subscriptions)
        for subscription in subscriptions[1:]:
            subscription.put(_copied(event))
        if subscriptions:
            subscriptions[0].put(event)
        else:
            _discard(event)

    def subscribe(self) -> Subscription:
        """Every event from now on, until `close`."""
        subscription = Subscription()
        if self._closed:
            subscription.end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """The run is over: listeners take what there is and end."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription.end()
        self._subscriptions.clear()

    def of(self, role: str, service: str, slot: int) -> dict[str, int]:
        """How often each thing happened in one slot."""
        found = {name: self.counts[role, service, slot, name] for name in EVENT_NAMES}
        return {name: count for name, count in found.items() if count}


def _copied(event: Event) -> Event:
    if event.handle is None:
        return event
    try:
        return replace(event, handle=event.handle.dup())
    except OSError as error:
        # No descriptors are left: the others still hear what happened.
        _log.warning("%s: what came with a message is not copied: %s", event.who, error.strerror)
        return replace(event, handle=None)


def _discard(event: Event) -> None:
    if event.handle is not None:
        event.handle.close()


def _discard_all(events: deque[Event]) -> None:
    while events:
        _discard(events.popleft())
