"""What a child needs from the run that it is part of, and what it tells it.

The one seam between `child`, which knows a single process, and `runner`, which knows them
all. Nothing here does anything.
"""

import socket
from asyncio import AbstractEventLoop, TaskGroup
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from penstock_supervisor.events import Name
from penstock_supervisor.output import Output
from penstock_supervisor.processes import Guardian

if TYPE_CHECKING:
    from penstock_supervisor.child import Child


class Above(Protocol):
    """Whom a child reports to. None of these may raise, but for `passed`."""

    def passed(self, child: "Child") -> tuple[int, ...]:
        """The listening sockets that its next process is given. StartError: there is none."""

    def spawned(self, child: "Child") -> None:
        """A new process is there, and its channel."""

    def gone(self, child: "Child") -> None:
        """Its process is gone; what belonged to it is about to be let go of."""

    def joined(self, child: "Child") -> None: ...
    def left(self, child: "Child") -> None: ...

    def heard(self, child: "Child", message: Any, handle: socket.socket | None) -> None:
        """A message that is not about its own life. Who takes the handle closes it."""

    def retiring(self, child: "Child", reason: str, why: str) -> None:
        """It works, but has to be replaced: it says so itself, or cannot be talked to."""

    def hopeless(self, child: "Child", why: str) -> bool:
        """It failed to start in a way that rarely mends itself. True: the run ends for it."""

    def gave_up(self, child: "Child", why: str) -> bool:
        """Nobody will start it again. True: the run ends for it, and says why itself."""

    def moved(self, child: "Child") -> None:
        """Its state may be another one."""

    def event(self, child: "Child", name: Name, **details: Any) -> None:
        """Something happened that people may want to know: `events` has the names."""


class Surroundings(NamedTuple):
    """What every child of a run needs from it."""

    loop: AbstractEventLoop
    tasks: TaskGroup
    guardian: Guardian
    output: Output
    above: Above
