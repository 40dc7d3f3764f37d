"""One process takes over a slot from another that still runs, and no client notices.

Two ways. A worker that *retires* (it says that it cannot be trusted any more, or cannot be
talked to) is followed at once: nobody picks it any more, its successor starts, it finishes
what it has. A worker that merely has to be *replaced* works until its successor is ready, so
that capacity never falls. In both, "stop picking it" is answered before it is told to stop:
that one message is what makes a replacement lossless.

Under `ports` the successor listens on a port of its own, because the old one still has the
slot's. Where the configuration leaves no port to spare, it has to wait for the old one's end.
"""

import logging
from asyncio import Task, TaskGroup
from collections.abc import Callable

from penstock_supervisor.changes import Changes
from penstock_supervisor.child import Child
from penstock_supervisor.lifecycle import State
from penstock_supervisor.roster import Roster, Slot, slot_of
from penstock_supervisor.rotation import Rotation

_log = logging.getLogger("penstock.supervisor")


class Succession:
    """`make(child)` makes a successor, and says whether it can run beside `child`."""

    def __init__(
        self,
        roster: Roster,
        rotation: Rotation,
        changes: Changes,
        make: Callable[[Child], tuple[Child, bool]],
    ) -> None:
        self._roster = roster
        self._rotation = rotation
        self._changes = changes
        self._make = make
        self._next: dict[Child, tuple[Child, str]] = {}
        """Who starts, and why, when the one before is gone."""
        self._rolling: Task[None] | None = None
        self._over = False
        """The run ends."""

    def retire(self, child: Child, reason: str, why: str) -> None:
        """Replace it now: it does not matter whether the successor gets ready."""
        if self._roster.is_followed(child):
            return
        successor, beside = self._make(child)
        self._roster.take_over(successor)
        _log.warning("%s; replacing it", why)
        self._rotation.hold(child, child.stop)
        if beside:
            successor.start_instead(reason)
        else:
            self._next[child] = successor, reason

    def roll(self, tasks: TaskGroup, slots: tuple[Slot, ...]) -> None:
        """Replace these workers, one after the other."""
        if self._rolling is None or self._rolling.done():
            self._rolling = tasks.create_task(self._roll(slots))
        else:
            _log.warning("workers are being replaced already")

    def cancel(self) -> None:
        """The run ends: nobody takes over from anybody any more."""
        self._over = True
        if self._rolling is not None:
            self._rolling.cancel()
        self._next.clear()

    async def _roll(self, slots: tuple[Slot, ...]) -> None:
        _log.info("replacing %d workers, one after the other", len(slots))
        for slot in slots:
            if not await self.replace(slot):
                _log.error("the other workers are left as they are")
                return
        _log.info("all workers are replaced")

    async def replace(self, slot: Slot) -> bool:
        """Replace one worker; False if its successor did not get ready and it stays."""
        child = self._roster.holders[slot]
        if child.state is not State.UP:
            child.start()
        elif not self._roster.is_followed(child):
            successor, beside = self._make(child)
            if beside:
                self._roster.add_comer(successor)
                successor.start()
            else:
                self._roster.take_over(successor)
                self._rotation.hold(child, child.stop)
                self._next[child] = successor, "reload"
        await self._changes.until(lambda: self._is_settled(slot))
        return self._rotation.is_up(slot)

    def arrived(self, comer: Child) -> None:
        """A comer is ready: it takes over."""
        before = self._roster.take_over(comer)
        if before.state is State.UP:
            self._rotation.hold(before, before.stop)
        else:
            # It crashed meanwhile: nobody picks it, and it must not come back beside its heir.
            before.stop()
        self._rotation.join(comer)

    def state_changed(self, child: Child) -> None:
        """Its state may be another one."""
        if self._roster.leaves(child):
            if child.state is State.BACKOFF:
                # It crashed on its way out; somebody else is in its place already.
                child.stop()
            elif child.at_rest:
                self._left(child)
        elif self._roster.comes(child) and child.at_rest:
            self._roster.drop_comer(child)
            if not self._over:
                _log.error("%s could not be replaced; the old process stays", child.name)

    def _left(self, child: Child) -> None:
        self._roster.forget(child)
        holder = self._roster.holders[slot_of(child)]
        if holder.state is not State.UP:
            self._rotation.leave(child)
        successor, reason = self._next.pop(child, (None, ""))
        if successor is None:
            return
        if reason == "reload":
            successor.start()
        else:
            successor.start_instead(reason)

    def _is_settled(self, slot: Slot) -> bool:
        holder = self._roster.holders[slot]
        if self._roster.is_followed(holder):
            return False
        waits = any(successor is holder for successor, _ in self._next.values())
        return self._rotation.is_up(slot) or (holder.at_rest and not waits)
