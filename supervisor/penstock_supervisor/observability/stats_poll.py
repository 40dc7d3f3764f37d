"""Polls every child for its statistics, and combines them with what the supervisor knows.

Owns the polls in progress (STATS, by number) and the measurement of the supervisor's loop lag. A
child that does not answer in time costs the deadline and nothing else: its last answer is used,
and marked as not fresh. Several polls may be in progress at once; each has its own number.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from penstock_proxy.messages import STATS
from penstock_proxy.metrics import Series, merge
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.observability import counter_carryover
from penstock_supervisor.observability.worker_series import (
    as_dict,
    as_number,
    sanitized,
    without_gauges,
)
from penstock_supervisor.snapshot import ChildView, ProcessView

_CAN_ANSWER: Final = (State.UP, State.STOPPING)


class _Poll:
    """One poll: the children that have not answered yet, and those that have."""

    def __init__(self, children: Iterable[Child]) -> None:
        self.unanswered = set(children)
        self.answered: set[Child] = set()
        self.done = asyncio.Event()
        self._check_done()

    def drop(self, child: Child, *, answered: bool) -> None:
        """Stop waiting for this child."""
        if child in self.unanswered:
            self.unanswered.discard(child)
            if answered:
                self.answered.add(child)
            self._check_done()

    def _check_done(self) -> None:
        if not self.unanswered:
            self.done.set()


class StatsPoll:
    """Made once for a run. `take` is one poll."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last_number = 0
        self._polls: dict[int, _Poll] = {}
        """In progress, by number."""

    async def take(
        self, shown: Sequence[Child], children: Sequence[Child], deadline_s: float
    ) -> tuple[ChildView, ...]:
        """Poll `children`, wait for the last answer or the deadline, and describe each of `shown`.

        A child that is draining counts for its slot, together with the current one. Which one
        is current may have changed while the answers were waited for.
        """
        poll = _Poll(child for child in children if _can_answer(child))
        self._last_number = number = self._last_number + 1
        self._polls[number] = poll
        try:
            for child in tuple(poll.unanswered):
                child.send({"cmd": STATS, "seq": number})
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await poll.done.wait()
        finally:
            del self._polls[number]
        shown = tuple(_now_current(child, children) for child in shown)
        others = [child for child in children if child not in shown]
        return tuple(self._view(child, others, fresh=child in poll.answered) for child in shown)

    def answered(self, child: Child, message: dict[str, Any]) -> None:
        """The child sent its statistics. Even a late answer is the newest that there is."""
        child.stats = message
        number = message.get("seq")
        if isinstance(number, int) and (poll := self._polls.get(number)):
            poll.drop(child, answered=True)

    def carry_over(self, child: Child) -> None:
        """Keep the counters of a child whose process ended, so that sums do not go down."""
        history = child.history
        if child.plan.role == "proxy":
            history.carryover = dict(counter_carryover.carry_over(history.carryover, child.stats))
        else:
            history.carryover = merge([history.carryover, without_gauges(_reported_series(child))])
        child.stats = {}

    def state_changed(self, child: Child) -> None:
        """Stop waiting for a child that has no channel any more."""
        if not child.has_channel:
            for poll in self._polls.values():
                poll.drop(child, answered=False)

    def _view(self, child: Child, others: Iterable[Child], *, fresh: bool) -> ChildView:
        others = [one for one in others if one.history is child.history]
        of_same_slot = [_reported_series(one) for one in others]
        before = child.history.carryover
        return ChildView(
            role=child.plan.role,
            service=child.plan.service,
            slot=child.plan.slot,
            state=child.shown_state.value,
            pid=child.pid,
            address="" if child.plan.address is None else str(child.plan.address),
            restarts=dict(child.history.restarts),
            since_s=child.seconds_in_state(),
            last_exit=child.history.last_exit,
            last_exit_reason=child.history.last_exit_reason,
            crash_loop=child.history.restart_policy.in_crash_loop,
            next_start_s=child.next_start_s,
            processes=tuple(_processes([child, *others])),
            exits=dict(child.history.exits),
            carryover=merge([before, *of_same_slot]) if of_same_slot else before,
            scheme=child.plan.scheme,
            speaks_protocol=child.speaks_protocol,
            events=self._events.counts_of(child.plan.role, child.plan.service, child.plan.slot),
            stats=child.stats,
            fresh=fresh,
        )


def _now_current(child: Child, children: Iterable[Child]) -> Child:
    """The current child of the slot of `child`, or `child` itself if there is none."""
    of_slot = (one for one in children if one.history is child.history)
    return next((one for one in of_slot if one.part == "current"), child)


def _processes(children: Iterable[Child]) -> Iterator[ProcessView]:
    """Those that have a process."""
    for child in children:
        if child.pid is not None and child.age_s is not None:
            fds = as_dict(as_dict(child.stats.get("metrics")).get("fds"))
            clients = as_number(fds.get("client"))
            yield ProcessView(
                child.part,
                child.shown_state.value,
                child.pid,
                "" if child.plan.address is None else str(child.plan.address),
                child.age_s,
                None if clients is None else int(clients),
            )


def _reported_series(child: Child) -> Series:
    """What its process reports of its own traffic, sanitized."""
    reported = as_dict(child.stats.get("metrics")).get("series")
    return sanitized(reported, child.plan.slot, child.plan.scheme)


def _can_answer(child: Child) -> bool:
    return child.has_channel and child.speaks_protocol and child.state in _CAN_ANSWER


class SupervisorLag:
    """How late the event loop is: a timer is set again and again, and its delay measured."""

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

    def _tick(self, set_at: float) -> None:
        now = self._loop.time()
        self._last_s = max(0.0, now - set_at - self.INTERVAL_S)
        self._handle = self._loop.call_later(self.INTERVAL_S, self._tick, now)
