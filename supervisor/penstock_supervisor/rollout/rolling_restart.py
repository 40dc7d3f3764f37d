"""Replaces the process in a slot while it still runs, without losing a request.

`replacement_queue` decides whose turn it is; this module carries it out. The successor starts
first, and the old process serves meanwhile, also one that retires. When the successor is ready it
takes over the slot: the proxies stop picking the old process, and only when every proxy has
answered that is it told to stop. That makes a replacement lossless. It has `timeouts.stop` from
then on, and is killed afterwards, which ends one that hangs.

A replacement is settled when the successor is in every rotation, or has failed. A successor that
ends before it is ready has failed: the old process stays. Only then is the next worker of the
service replaced.

Under `ports` the successor listens on a port of its own, because the old process still has the
slot's port. If the configuration has no spare port, the successor starts when the old process
has ended.
"""

import logging
from asyncio import AbstractEventLoop, Task, TaskGroup
from collections.abc import Callable
from typing import Final

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.replacement_queue import (
    REASONS,
    RELOAD,
    Reason,
    Replacement,
    ReplacementQueue,
)
from penstock_supervisor.rotation.rotation import Rotation

IN_ROTATION_S: Final = 10.0
"""A successor that is ready may take so long to pass its first check at every proxy. That of a
worker that has just started is repeated five times a second."""

_HAS_PROCESS: Final = (State.STARTING, State.LATE, State.UP, State.STOPPING)

_log = logging.getLogger("penstock.supervisor")


class _Step:
    """A replacement under way."""

    def __init__(self, replacement: Replacement, old: Child, deadline: float) -> None:
        self.replacement = replacement
        self.old = old
        self.deadline = deadline
        self.successor: Child | None = None
        """None: the slot had no process that was ready, and it was only started."""
        self.waits_for_end = False
        """The successor starts when the old process has ended."""
        self.failed = False


class RollingRestart:
    """`make_successor(child)` also says whether the successor can run beside `child`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        slots: Slots,
        rotation: Rotation,
        condition: Condition,
        make_successor: Callable[[Child], tuple[Child, bool]],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._rotation = rotation
        self._condition = condition
        self._make_successor = make_successor
        self._queue = ReplacementQueue()
        self._steps: dict[str, _Step] = {}
        """By service."""
        self._succeeded: dict[Slot, bool] = {}
        """How the last replacement of each slot ended."""
        self._wake_pending = False
        self._roll_task: Task[None] | None = None
        self._cancelled = False
        """The run ends."""

    # What wants a worker replaced.

    def request(self, child: Child, reason: Reason, why: str) -> None:
        """Replace this worker when its turn comes. Asked for again, it is the same request."""
        slot = slot_of(child)
        step = self._steps.get(slot[0])
        is_replaced_now = step is not None and step.old is child
        if self._cancelled or is_replaced_now or not self._slots.is_current(child):
            return
        if self._queue.request(slot, reason, why) and step is not None:
            _log.info("%s is replaced after %s", child.name, step.old.name)
        self.wake()

    def withdraw(self, child: Child, *reasons: Reason) -> None:
        """Its process is well again. A replacement that has begun goes on."""
        self._queue.withdraw(slot_of(child), *reasons)

    def roll(self, tasks: TaskGroup, slots: tuple[Slot, ...]) -> None:
        """Replace these workers, one after the other."""
        if self._roll_task is None or self._roll_task.done():
            self._roll_task = tasks.create_task(self._roll(slots))
        else:
            _log.warning("workers are being replaced already")

    async def _roll(self, slots: tuple[Slot, ...]) -> None:
        if len(slots) > 1:
            _log.info("replacing %d workers, one after the other", len(slots))
        for slot in slots:
            if not await self.replace(slot):
                if slot != slots[-1]:
                    _log.error("the other workers are left as they are")
                return
        if set(slots).issuperset(self._slots.current):
            _log.info("all workers are replaced")

    async def replace(self, slot: Slot) -> bool:
        """Replace one worker. False: its successor did not get ready, and the worker stays.

        True as well if the slot is gone, or goes meanwhile.
        """
        if slot not in self._slots.current:
            return True
        if not self._is_replacing(slot):
            self._queue.request(slot, RELOAD, "all workers are replaced")
        self.wake()
        await self._condition.wait_until(
            lambda: not self._queue.wants(slot, RELOAD) and not self._is_replacing(slot)
        )
        return slot not in self._slots.current or self._succeeded.get(slot, True)

    def cancel(self) -> None:
        """The run ends: no worker is replaced any more."""
        self._cancelled = True
        if self._roll_task is not None:
            self._roll_task.cancel()
        self._queue.clear()
        self._steps.clear()

    # What happens meanwhile.

    def wake(self) -> None:
        """Something changed: see what follows, in the loop's next turn."""
        if not self._wake_pending and not self._cancelled:
            self._wake_pending = True
            self._loop.call_soon(self.advance)

    def advance(self) -> None:
        """Settle what has succeeded or failed, and begin what is due."""
        self._wake_pending = False
        if self._cancelled:
            return
        for step in tuple(self._steps.values()):
            if (ok := self._outcome(step)) is not None:
                self._settle(step, ok=ok)
        due = self._queue.due(self._loop.time(), self._is_free)
        for delayed, wait_s in self._queue.take_delayed():
            text = "%s/%d has asked %d times in a row, soon after it came; it is replaced in %.0f s"
            _log.error(text, *delayed.slot, delayed.repeats, wait_s)
        for replacement in due:
            self._begin(replacement)

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
        if (step := self._steps.get(slot_of(successor)[0])) is not None:
            step.deadline = self._loop.time() + IN_ROTATION_S

    def state_changed(self, child: Child) -> None:
        """The state of this child may have changed."""
        if self._slots.is_draining(child):
            if child.at_rest:
                self._drained(child)
            elif child.state not in _HAS_PROCESS:
                # It crashed while draining, and its successor has its slot already.
                child.stop()
        elif self._slots.is_successor(child):
            self._successor_changed(child)
        elif self._slots.is_current(child) and child.state is not State.UP:
            # It ended by itself, and is started again anyway.
            self._queue.withdraw(slot_of(child), *(one for one in REASONS if one != RELOAD))
        self.wake()

    def _successor_changed(self, successor: Child) -> None:
        if successor.at_rest:
            self._slots.drop_successor(successor)
            step = self._steps.get(slot_of(successor)[0])
            if step is not None and step.successor is successor:
                step.failed = True
        elif successor.state not in _HAS_PROCESS and not successor.postponed:
            # It will not be started again and again beside a process that serves.
            successor.stop()

    def _drained(self, child: Child) -> None:
        slot = slot_of(child)
        self._slots.forget(child)
        current = self._slots.current.get(slot)
        if current is None or current.state is not State.UP:
            self._rotation.leave(child)
        step = self._steps.get(slot[0])
        if step is None or step.old is not child or not step.waits_for_end:
            return
        step.waits_for_end = False
        step.deadline = self._loop.time() + child.plan.start_s + IN_ROTATION_S
        if step.successor is not None and step.successor is current:
            self._start(step.successor, step.replacement)

    # The steps of one replacement.

    def _begin(self, replacement: Replacement) -> None:
        child = self._slots.current.get(replacement.slot)
        if child is None or (child.state is not State.UP and replacement.reason != RELOAD):
            # It went, or ended by itself.
            self._queue.settled(replacement, self._loop.time(), ok=True)
            return
        name = replacement.slot[0]
        step = _Step(replacement, child, self._loop.time() + child.plan.start_s + IN_ROTATION_S)
        self._steps[name] = step
        if child.state is not State.UP:
            child.start()
            return
        if replacement.reason != RELOAD:
            _log.warning("%s; replacing it", replacement.why)
        step.successor, beside = self._make_successor(child)
        if beside:
            self._slots.add_successor(step.successor)
            self._start(step.successor, replacement)
        else:
            step.waits_for_end = True
            self._slots.take_over(step.successor)
            self._rotation.drain(child, child.stop)

    def _start(self, successor: Child, replacement: Replacement) -> None:
        if replacement.reason == RELOAD:
            successor.start()
        else:
            successor.start_as_replacement(replacement.reason)

    def _outcome(self, step: _Step) -> bool | None:
        """None: it is not settled yet."""
        slot = step.replacement.slot
        current = self._slots.current.get(slot)
        if current is None:
            return True
        if step.waits_for_end:
            # It is killed in the end, and nothing is decided before that.
            return None
        if step.failed or self._loop.time() >= step.deadline:
            return False
        if step.successor is None:
            has_ended = current.state not in (*_HAS_PROCESS, State.BACKOFF)
            return True if self._rotation.is_up(slot) else False if has_ended else None
        if current is step.successor and (current.at_rest or current.state is State.CRASH_LOOP):
            return False
        return True if current is step.successor and self._rotation.is_up(slot) else None

    def _settle(self, step: _Step, *, ok: bool) -> None:
        replacement, old = step.replacement, step.old
        slot = replacement.slot
        del self._steps[slot[0]]
        self._succeeded[slot] = ok
        pause_s = self._queue.settled(replacement, self._loop.time(), ok=ok)
        if not ok:
            self._report_failure(step, pause_s)
        elif step.successor is not None and slot in self._slots.current:
            _log.info("%s is replaced", old.name)
        self._condition.notify()
        self.wake()

    def _report_failure(self, step: _Step, pause_s: float | None) -> None:
        old, successor = step.old, step.successor
        again = "" if pause_s is None else f"; the next try is in {pause_s:.0f} s at the earliest"
        if successor is None or self._slots.is_current(successor):
            _log.error("%s did not come into the rotation%s", old.name, again)
            return
        if self._slots.is_successor(successor):
            successor.stop()
        _log.error("%s could not be replaced; the old process stays%s", old.name, again)

    def _is_replacing(self, slot: Slot) -> bool:
        active = self._queue.active(slot[0])
        return active is not None and active.slot == slot

    def _is_free(self, slot: Slot) -> bool:
        """Nothing is left of an earlier replacement; what drains does not matter."""
        current = self._slots.current.get(slot)
        return current is None or not self._slots.is_being_replaced(current)
