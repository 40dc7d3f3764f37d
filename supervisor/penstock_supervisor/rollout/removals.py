"""Services that a change has removed, until nothing is left of them.

A removed service finishes what it has, for as long as its `timeouts.stop`: that may be an hour,
for one WebSocket. The roll-out that removes it waits for that only as long as nobody else waits.
Then it ends, and its removed services go on beside the next one; what is left of them is ended when
no roll-out runs. So a later reload is held up in one case only: it has a service of the same name,
which cannot begin before the other one has ended.

Owns the order of such an end: first nothing comes to its workers any more, then these go, then all
is forgotten. Must not know which roll-out runs.
"""

from collections.abc import Awaitable, Callable, Iterable, Set
from typing import Protocol

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.replacements import Replacements


class Leaving(Protocol):
    """What a change has taken away."""

    @property
    def removed(self) -> Set[str]:
        """The services that are not forgotten yet."""

    async def until_unused(self, is_awaited: Callable[[], bool]) -> bool:
        """Wait until nothing comes to the workers of these services any more. False: it has not
        come so far, and somebody else waits."""

    def forget(self) -> None:
        """Their workers have ended."""


class LeftWorkers(Protocol):
    def leftover(self) -> list[Slot]:
        """The slots of services that are no more in force."""

    def has_leaving(self) -> bool:
        """Has a service that is no more in force a process?"""


class Removals:
    """Made once for a run."""

    def __init__(
        self,
        leaving: Leaving,
        workers: LeftWorkers,
        replacements: Replacements,
        condition: Condition,
    ) -> None:
        self._leaving = leaving
        self._workers = workers
        self._replacements = replacements
        self._condition = condition

    @property
    def names(self) -> Set[str]:
        """The services that have not ended."""
        return self._leaving.removed

    async def end(
        self,
        is_awaited: Callable[[], bool],
        request: Callable[[Iterable[Slot]], None],
        before_forgetting: Callable[[], Awaitable[None]],
    ) -> None:
        """End them all. It returns as soon as somebody waits; called again it goes on from there.

        `request` asks for the removal of slots."""
        if not self._leaving.removed or not await self._leaving.until_unused(is_awaited):
            return
        # Last of all: nobody sends anything to them any more.
        request(self._workers.leftover())
        await self._condition.wait_until(lambda: not self._has_workers or is_awaited())
        if self._has_workers:
            self._replacements.leave_removals()
            return
        await before_forgetting()
        self._leaving.forget()

    @property
    def _has_workers(self) -> bool:
        return self._replacements.is_rolling or self._workers.has_leaving()
