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

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rotation.rotation import Rotation

_log = logging.getLogger("penstock.supervisor")


class RollingRestart:
    """`make(child)` makes a successor, and says whether it can run beside `child`."""

    def __init__(
        self,
        slots: Slots,
        rotation: Rotation,
        condition: Condition,
        make: Callable[[Child], tuple[Child, bool]],
    ) -> None:
        self._slots = slots
        self._rotation = rotation
        self._condition = condition
        self._make = make
        self._next: dict[Child, tuple[Child, str]] = {}
        """Who starts, and why, when the one before is gone."""
        self._rolling: Task[None] | None = None
        self._over = False
        """The run ends."""

    def retire(self, child: Child, reason: str, why: str) -> None:
        """Replace it now: it does not matter whether the successor gets ready."""
        if self._slots.is_being_replaced(child):
            return
        successor, beside = self._make(child)
        self._slots.take_over(successor)
        _log.warning("%s; replacing it", why)
        self._rotation.drain(child, child.stop)
        if beside:
            successor.start_as_replacement(reason)
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
        """Replace one worker; False if its successor did not get ready and it stays. A slot
        that is gone, or goes meanwhile, needs nobody."""
        child = self._slots.current.get(slot)
        if child is None:
            return True
        if child.state is not State.UP:
            child.start()
        elif not self._slots.is_being_replaced(child):
            successor, beside = self._make(child)
            if beside:
                self._slots.add_successor(successor)
                successor.start()
            else:
                self._slots.take_over(successor)
                self._rotation.drain(child, child.stop)
                self._next[child] = successor, "reload"
        await self._condition.wait_until(lambda: self._is_settled(slot))
        return slot not in self._slots.current or self._rotation.is_up(slot)

    def successor_ready(self, successor: Child) -> None:
        """It is ready: it takes over."""
        before = self._slots.take_over(successor)
        if before.state is State.UP:
            self._rotation.drain(before, before.stop)
        else:
            # It crashed meanwhile: nobody picks it, and it must not come back beside its successor.
            before.stop()
        self._rotation.join(successor)

    def state_changed(self, child: Child) -> None:
        """Its state may be another one."""
        if self._slots.is_draining(child):
            if child.state is State.BACKOFF:
                # It crashed on its way out; somebody else is in its place already.
                child.stop()
            elif child.at_rest:
                self._drained(child)
        elif self._slots.is_successor(child) and child.at_rest:
            self._slots.drop_successor(child)
            if not self._over:
                _log.error("%s could not be replaced; the old process stays", child.name)

    def _drained(self, child: Child) -> None:
        self._slots.forget(child)
        current = self._slots.current.get(slot_of(child))
        if current is None or current.state is not State.UP:
            self._rotation.leave(child)
        successor, reason = self._next.pop(child, (None, ""))
        if successor is None or current is None:
            return
        if reason == "reload":
            successor.start()
        else:
            successor.start_as_replacement(reason)

    def _is_settled(self, slot: Slot) -> bool:
        current = self._slots.current.get(slot)
        if current is None:
            return True
        if self._slots.is_being_replaced(current):
            return False
        waits = any(successor is current for successor, _ in self._next.values())
        return self._rotation.is_up(slot) or (current.at_rest and not waits)
