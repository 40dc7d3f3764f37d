"""What a slot (`child`) reports, and what it asks, as an interface.

Owns nothing but the names: `child_events` implements them for a run, and tests do for one slot. It
is a module of its own so that neither side has to know the other.
"""

import socket
from asyncio import Future
from typing import Any, Protocol, TypeVar

from penstock_supervisor.children.events import EventName
from penstock_supervisor.snapshot import Part

C = TypeVar("C", contravariant=True)
"""The class of the children."""


class ChildObserver(Protocol[C]):
    """What a child reports to. Only `sockets_for` may raise."""

    def look_for_directory(self, child: C) -> Future[None] | None:
        """Look where its next process is to be started, and give it another plan if that is
        elsewhere now. SpawnError. It may be cancelled. None: nobody has to look."""

    def sockets_for(self, child: C) -> tuple[int, ...]:
        """Listening sockets for its next process. StartError if a socket cannot be opened."""

    def spawned(self, child: C) -> None:
        """A new process was started, and its channel is open."""

    def part_of(self, child: C) -> Part:
        """What it is in its slot. A proxy is always the current one."""

    def exited(self, child: C) -> None:
        """Its process has ended. Its channel and links will be closed after this call."""

    def joined(self, child: C) -> None: ...
    def left(self, child: C) -> None: ...

    def message_received(self, child: C, message: Any, handle: socket.socket | None) -> None:
        """A message that is not about its lifecycle. The observer closes the handle."""

    def replacement_needed(self, child: C, reason: str, why: str) -> None:
        """It is ready, but asked to be replaced, or its channel is closed."""

    def start_failed(self, child: C, why: str) -> bool:
        """It failed to start, in a way that another try rarely helps. True: the run ends because
        of it."""

    def gave_up(self, child: C, why: str) -> bool:
        """It ended too often: it is started again later, or never. Called each time; `why` is empty
        if it was in a crash loop before. True: the run ends because of it, and reports `why`."""

    def state_changed(self, child: C) -> None:
        """Called after every lifecycle event, also if the state is the same."""

    def event(self, child: C, name: EventName, **details: Any) -> None:
        """An event for subscribers, by a name of `events`."""
