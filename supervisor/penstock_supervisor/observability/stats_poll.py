"""Asks every child how it is, and puts the answers beside what we know ourselves.

Owns the questions that are out (STATS, by number) and the measure of our own loop's lag. A
child that does not answer in time costs the deadline once and nothing else: its last answer
stands, and is marked as old. Several may ask at once; each question has a number.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from penstock_proxy.messages import STATS
from penstock_proxy.metrics import Series, merge
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.observability import counter_carryover
from penstock_supervisor.observability.worker_series import sanitized, table, without_gauges
from penstock_supervisor.snapshot import ChildView

_CAN_ANSWER: Final = (State.UP, State.STOPPING)


class _Poll:
    """Whose answer is still missing, and who gave one."""

    def __init__(self, asked: Iterable[Child]) -> None:
        self.missing = set(asked)
        self.answered: set[Child] = set()
        self.settled = asyncio.Event()
        self._look()

    def drop(self, child: Child, *, answered: bool) -> None:
        if child in self.missing:
            self.missing.discard(child)
            if answered:
                self.answered.add(child)
            self._look()

    def _look(self) -> None:
        if not self.missing:
            self.settled.set()


class StatsPoll:
    """The questions that are out."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last = 0
        self._open: dict[int, _Poll] = {}

    async def take(
        self, shown: Sequence[Child], children: Sequence[Child], deadline_s: float
    ) -> tuple[ChildView, ...]:
        """Ask all that can answer, wait for the last or the deadline, and describe each slot.

        What leaves a slot while another process has it counts for the slot as well.
        """
        poll = _Poll(child for child in children if _can_answer(child))
        self._last = number = self._last + 1
        self._open[number] = poll
        try:
            for child in tuple(poll.missing):
                child.send({"cmd": STATS, "seq": number})
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await poll.settled.wait()
        finally:
            del self._open[number]
        others = [child for child in children if child not in shown]
        return tuple(self._view(child, others, fresh=child in poll.answered) for child in shown)

    def answered(self, child: Child, message: dict[str, Any]) -> None:
        """Note an answer; a late one is still the newest that there is."""
        child.stats = message
        number = message.get("seq")
        if isinstance(number, int) and (poll := self._open.get(number)):
            poll.drop(child, answered=True)

    def carry_over(self, child: Child) -> None:
        """Its process is gone: what it had counted is kept, or sums would go down."""
        history = child.history
        if child.plan.role == "proxy":
            history.carryover = dict(counter_carryover.carry_over(history.carryover, child.stats))
        else:
            history.carryover = merge([history.carryover, without_gauges(_counted(child))])
        child.stats = {}

    def state_changed(self, child: Child) -> None:
        """Nobody waits for one that is gone."""
        if not child.has_channel:
            for poll in self._open.values():
                poll.drop(child, answered=False)

    def _view(self, child: Child, others: Iterable[Child], *, fresh: bool) -> ChildView:
        sisters = [_counted(one) for one in others if one.history is child.history]
        before = child.history.carryover
        return ChildView(
            role=child.plan.role,
            service=child.plan.service,
            slot=child.plan.slot,
            state=child.state.name.lower(),
            pid=child.pid,
            address="" if child.plan.address is None else str(child.plan.address),
            restarts=dict(child.history.restarts),
            since_s=child.seconds_in_state(),
            last_exit=child.history.last_exit,
            exits=dict(child.history.exits),
            carryover=merge([before, *sisters]) if sisters else before,
            scheme=child.plan.scheme,
            speaks_protocol=child.speaks_protocol,
            events=self._events.counts_of(child.plan.role, child.plan.service, child.plan.slot),
            stats=child.stats,
            fresh=fresh,
        )


def _counted(child: Child) -> Series:
    """What its process said it counted, as far as it can be believed."""
    told = table(child.stats.get("metrics")).get("series")
    return sanitized(told, child.plan.slot, child.plan.scheme)


def _can_answer(child: Child) -> bool:
    return child.has_channel and child.speaks_protocol and child.state in _CAN_ANSWER


class LoopLag:
    """How late the event loop is: the difference between a wake that was asked for and it."""

    INTERVAL_S: Final = 0.5

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._last_s = 0.0
        self._handle = loop.call_later(self.INTERVAL_S, self._tick, loop.time())

    @property
    def seconds(self) -> float:
        return self._last_s

    def close(self) -> None:
        self._handle.cancel()

    def _tick(self, asked_at: float) -> None:
        now = self._loop.time()
        self._last_s = max(0.0, now - asked_at - self.INTERVAL_S)
        self._handle = self._loop.call_later(self.INTERVAL_S, self._tick, now)
