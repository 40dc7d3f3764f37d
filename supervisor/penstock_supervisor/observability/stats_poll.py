"""Polls every child for its statistics, and combines them with what the supervisor knows.

Owns the polls in progress (STATS, by number). A
child that does not answer in time costs the deadline and nothing else: its last answer is used,
and marked as not fresh. Several polls may be in progress at once; each has its own number.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from penstock_proxy.messages import STATS
from penstock_proxy.metrics import Series, merge
from penstock_proxy.runtime.stats import joined
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.observability import counter_carryover
from penstock_supervisor.observability.removed_slots import RemovedSlots
from penstock_supervisor.observability.unseen_ends import UnseenEnds, counts_requests
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

    def __init__(self, events: Events, member_state: Callable[[Child], str] = lambda _: "") -> None:
        """`member_state(child)`: of a worker, see `ProcessView.member_state`."""
        self._events = events
        self._member_state = member_state
        self.removed_slots = RemovedSlots()
        self.unseen_ends = UnseenEnds()
        self._last_number = 0
        self._polls: dict[int, _Poll] = {}
        """In progress, by number."""
        self._parts: defaultdict[Child, list[dict[str, Any]]] = defaultdict(list)
        """Of answers that are not complete yet, by who has sent them."""

    async def take(
        self,
        shown: Callable[[], Iterable[Child]],
        children: Callable[[], Iterable[Child]],
        deadline_s: float,
    ) -> tuple[ChildView, ...]:
        """Poll `children`, wait for the last answer or the deadline, and describe each of `shown`.

        A child that is draining counts for its slot, together with the current one. Who is
        described is asked after the wait: a worker may have been replaced meanwhile, most likely
        when one hangs, and then the wait is the longest.
        """
        present = {child: child.pid for child in children()}
        poll = _Poll(child for child in present if _can_answer(child))
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
        described = tuple(shown())
        others = [child for child in children() if child not in described]
        silent = {
            child
            for child, pid in present.items()
            if child.pid == pid and child not in poll.answered and _should_answer(child)
        }
        return tuple(
            self._view(child, others, silent, fresh=child in poll.answered) for child in described
        )

    def part_came(self, child: Child, message: dict[str, Any]) -> None:
        """A proxy sent a part of its statistics."""
        self._parts[child].append(message)

    def answered(self, child: Child, message: dict[str, Any]) -> None:
        """The child sent its statistics. Even a late answer is the newest that there is."""
        if child.plan.role == "proxy":
            parts, number = self._parts.pop(child, []), message.get("seq")
            # Parts of several answers may come at the same time.
            if others := [part for part in parts if part.get("seq") != number]:
                self._parts[child] = others
            if len(others) < len(parts):
                message = joined((part for part in parts if part.get("seq") == number), message)
            # A proxy tells once more what a service had counted that is gone.
            child.history.carryover = dict(
                counter_carryover.departed(child.history.carryover, child.stats, message)
            )
        child.stats = message
        number = message.get("seq")
        if isinstance(number, int) and (poll := self._polls.get(number)):
            poll.drop(child, answered=True)

    def leave_to(self, heir: Child, gone: Child) -> None:
        """A proxy is gone for good: another one keeps what it had counted."""
        heir.history.carryover = dict(
            counter_carryover.add(heir.history.carryover, gone.history.carryover)
        )

    def forget(self, service: str, children: Iterable[Child]) -> None:
        """Nothing is left of this service, which is removed. Should one of its name come again, its
        counters begin at 0, as those of any other: what was counted before is not its own."""
        self.removed_slots.forget(service)
        for child in children:
            if child.plan.role == "proxy":
                child.history.carryover = counter_carryover.without(
                    child.history.carryover, service
                )
                child.stats = counter_carryover.stats_without(child.stats, service)

    def carry_over(self, child: Child) -> None:
        """Keep the counters of a child whose process ended, so that sums do not go down."""
        history = child.history
        self._parts.pop(child, None)
        picked = child.plan.role == "proxy" or self._member_state(child) != "checking"
        self.unseen_ends.ended(child, never_picked=not picked)
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

    def _view(
        self, child: Child, others: Iterable[Child], silent: Container[Child], *, fresh: bool
    ) -> ChildView:
        others = [one for one in others if one.history is child.history]
        of_same_slot = [_reported_series(one) for one in others]
        before = child.history.carryover
        return ChildView(
            role=child.plan.role,
            service=child.plan.service,
            slot=child.plan.slot,
            number=child.number,
            state=child.shown_state.value,
            pid=child.pid,
            address="" if child.plan.address is None else str(child.plan.address),
            socket="" if child.plan.socket is None else str(child.plan.socket),
            restarts=dict(child.history.restarts),
            since_s=child.seconds_in_state(),
            last_exit=child.history.last_exit,
            last_exit_reason=child.history.last_exit_reason,
            crash_loop=child.starts.restart_policy.in_crash_loop,
            next_start_s=child.next_start_s,
            processes=tuple(self._processes([child, *others], silent)),
            exits=dict(child.history.exits),
            carryover=merge([before, *of_same_slot]) if of_same_slot else before,
            scheme=child.plan.scheme,
            speaks_protocol=child.speaks_protocol,
            events=self._events.counts_of(child.plan.role, child.plan.service, child.plan.slot),
            stats=child.stats,
            fresh=fresh,
        )

    def _processes(
        self, children: Iterable[Child], silent: Container[Child]
    ) -> Iterator[ProcessView]:
        """Those that have a process."""
        for child in children:
            if child.pid is not None and child.age_s is not None:
                fds = as_dict(as_dict(child.stats.get("metrics")).get("fds"))
                clients = as_number(fds.get("client"))
                is_worker = child.plan.role == "worker"
                yield ProcessView(
                    child.part,
                    child.shown_state.value,
                    child.pid,
                    "" if child.plan.address is None else str(child.plan.address),
                    child.age_s,
                    None if clients is None else int(clients),
                    self._member_state(child) if is_worker else "",
                    child.number,
                    _reported_series(child) if is_worker else None,
                    child in silent,
                    "" if child.plan.socket is None else str(child.plan.socket),
                )


def _reported_series(child: Child) -> Series:
    """What its process reports of its own traffic, sanitized."""
    reported = as_dict(child.stats.get("metrics")).get("series")
    return sanitized(reported, child.plan.slot, child.plan.scheme)


def _should_answer(child: Child) -> bool:
    return counts_requests(child) and child.pid is not None and child.state in _CAN_ANSWER


def _can_answer(child: Child) -> bool:
    return child.has_channel and child.speaks_protocol and child.state in _CAN_ANSWER
