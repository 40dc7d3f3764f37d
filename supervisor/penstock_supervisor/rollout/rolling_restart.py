"""Replaces the process in a slot while it still runs, without losing a request.

There are two ways. A worker *retires* if it asks for that, or if its channel is broken. Proxies
stop picking the worker at once, it finishes what it has, and its successor starts meanwhile. A
worker is *replaced* in a roll-out. It is drained when its successor is ready, which is before the
successor's first health check.

In both ways the worker is told to stop only after every proxy has answered that it no longer picks
this worker. That makes a replacement lossless.

Under `ports` the successor listens on a port of its own, because the old process still has the
slot's port. If the configuration has no spare port, the successor starts when the old process
has ended.
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
    """`make_successor(child)` also says whether the successor can run beside `child`."""

    def __init__(
        self,
        slots: Slots,
        rotation: Rotation,
        condition: Condition,
        make_successor: Callable[[Child], tuple[Child, bool]],
    ) -> None:
        self._slots = slots
        self._rotation = rotation
        self._condition = condition
        self._make_successor = make_successor
        self._waiting_successors: dict[Child, tuple[Child, str]] = {}
        """By the child whose end it waits for: the successor, and the reason of its start."""
        self._roll_task: Task[None] | None = None
        self._cancelled = False
        """The run ends."""

    def retire(self, child: Child, reason: str, why: str) -> None:
        """Replace this worker now, even if its successor does not get ready."""
        if self._slots.is_being_replaced(child):
            return
        successor, beside = self._make_successor(child)
        self._slots.take_over(successor)
        _log.warning("%s; replacing it", why)
        self._rotation.drain(child, child.stop)
        if beside:
            successor.start_as_replacement(reason)
        else:
            self._waiting_successors[child] = successor, reason

    def roll(self, tasks: TaskGroup, slots: tuple[Slot, ...]) -> None:
        """Replace these workers, one after the other."""
        if self._roll_task is None or self._roll_task.done():
            self._roll_task = tasks.create_task(self._roll(slots))
        else:
            _log.warning("workers are being replaced already")

    def cancel(self) -> None:
        """The run ends: no worker is replaced any more."""
        self._cancelled = True
        if self._roll_task is not None:
            self._roll_task.cancel()
        self._waiting_successors.clear()

    async def _roll(self, slots: tuple[Slot, ...]) -> None:
        _log.info("replacing %d workers, one after the other", len(slots))
        for slot in slots:
            if not await self.replace(slot):
                _log.error("the other workers are left as they are")
                return
        _log.info("all workers are replaced")

    async def replace(self, slot: Slot) -> bool:
        """Replace one worker. False: its successor did not get ready, and the worker stays.

        True as well if the slot is gone, or goes meanwhile.
        """
        child = self._slots.current.get(slot)
        if child is None:
            return True
        if child.state is not State.UP:
            child.start()
        elif not self._slots.is_being_replaced(child):
            successor, beside = self._make_successor(child)
            if beside:
                self._slots.add_successor(successor)
                successor.start()
            else:
                self._slots.take_over(successor)
                self._rotation.drain(child, child.stop)
                self._waiting_successors[child] = successor, "reload"
        await self._condition.wait_until(lambda: self._is_settled(slot))
        return slot not in self._slots.current or self._rotation.is_up(slot)

    def successor_ready(self, successor: Child) -> None:
        """The successor is ready: it takes over the slot."""
        before = self._slots.take_over(successor)
        if before.state is State.UP:
            self._rotation.drain(before, before.stop)
        else:
            # It crashed meanwhile. No proxy picks it, and it must not be started again beside
            # its successor.
            before.stop()
        self._rotation.join(successor)

    def state_changed(self, child: Child) -> None:
        """The state of this child may have changed."""
        if self._slots.is_draining(child):
            if child.state is State.BACKOFF:
                # It crashed while draining, and its successor has its slot already.
                child.stop()
            elif child.at_rest:
                self._drained(child)
        elif self._slots.is_successor(child) and child.at_rest:
            self._slots.drop_successor(child)
            if not self._cancelled:
                _log.error("%s could not be replaced; the old process stays", child.name)

    def _drained(self, child: Child) -> None:
        self._slots.forget(child)
        current = self._slots.current.get(slot_of(child))
        if current is None or current.state is not State.UP:
            self._rotation.leave(child)
        successor, reason = self._waiting_successors.pop(child, (None, ""))
        if successor is None or current is None:
            return
        if reason == "reload":
            successor.start()
        else:
            successor.start_as_replacement(reason)

    def _is_settled(self, slot: Slot) -> bool:
        """The replacement in this slot succeeded or failed, or the slot is gone."""
        current = self._slots.current.get(slot)
        if current is None:
            return True
        if self._slots.is_being_replaced(current):
            return False
        is_waiting = any(successor is current for successor, _ in self._waiting_successors.values())
        ended = current.at_rest or current.state is State.CRASH_LOOP
        return self._rotation.is_up(slot) or (ended and not is_waiting)
