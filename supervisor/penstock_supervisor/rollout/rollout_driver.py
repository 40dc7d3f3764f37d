"""Carries out one roll-out after the other.

Owns what is told of each (what it changes, its requests, how it ended) and what a superseded one
leaves to the next. How one goes on is `course`'s. Must not know who has asked, or what comes next
(`rollouts`).
"""

import logging
from collections.abc import Callable, Collection, Iterable

from penstock_supervisor import blocking
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.config.model import Config
from penstock_supervisor.rollout.course import Course
from penstock_supervisor.rollout.outcome import Done, outcome
from penstock_supervisor.rollout.preparation import READ_S
from penstock_supervisor.rollout.rollout import DIFFERING, Rollout
from penstock_supervisor.rollout.rollout_parts import RolloutParts, Unfinished

_log = logging.getLogger("penstock.supervisor")


class RolloutDriver:
    """`run` is called for one roll-out after the other."""

    _unfinished: Unfinished | None = None
    """What the last one has left, because it was superseded or could not take it back."""

    def __init__(self, parts: RolloutParts) -> None:
        self._parts = parts

    @property
    def in_force(self) -> Config:
        """The configuration in force."""
        config: Config = self._parts.versions.in_force.config
        return config

    def mixed(self, names: Collection[str]) -> set[str]:
        """Of these, those that the last one has left with workers of two versions. DIFFERING is
        one of them if a worker is not of the version in force."""
        versions = self._parts.versions
        found = set() if self._unfinished is None else {*self._unfinished.mixed} & {*names}
        if DIFFERING in names and versions.targets(versions.in_force, {DIFFERING}):
            found.add(DIFFERING)
        return found

    @property
    def leaving(self) -> Collection[str]:
        """The services that were removed, and have not ended."""
        return self._parts.removals.names

    async def end_removals(self, is_awaited: Callable[[], bool]) -> None:
        """No roll-out runs: wait until all services that were removed have ended, or for who has
        not to wait for that."""
        while self._parts.removals.names and not is_awaited():
            await self._parts.removals.end(is_awaited, self._remove, _nothing)

    def _remove(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self._parts.replacements.request_slot(slot, "its service is removed")

    async def run(self, rollout: Rollout, on_change: Callable[[], None]) -> None:
        """Carry it out; it is over then."""
        rollout.changes = tuple(
            f"{name}/{slot} is replaced" for name, slot in sorted(rollout.slots)
        )
        if rollout.cause:
            rollout.changes += (rollout.cause,)
        elif rollout.is_reload:
            rollout.changes += await self._described(rollout)
        _log.info("roll-out %d begins", rollout.number)
        for line in rollout.changes:
            _log.info("roll-out %d: %s", rollout.number, line)
        rollout.begun_at = self._parts.loop.time()
        before = await self._parts.measurements.requests()
        course = Course(self._parts, rollout, self._unfinished, on_change)
        self._unfinished = None
        self._parts.replacements.replaced.begin(rollout.to_do)
        try:
            await course.run()
        finally:
            self._parts.replacements.replaced.end()
            self._unfinished = course.left_over
        rollout.outcome = _outcome(rollout)
        after = (await self._parts.measurements.requests()).with_gone(course.seen or before)
        rollout.count(after.since(before))

    async def _described(self, rollout: Rollout) -> tuple[str, ...]:
        # In a thread, as it follows links on a disk that may not answer.
        describe = self._parts.versions.describe
        try:
            return await blocking.within(
                READ_S, "directories", describe, rollout.config, rollout.names
            )
        except blocking.BlockedError as error:
            return (f"where its directories lead is not known: {error}",)


async def _nothing() -> None:
    pass


def _outcome(rollout: Rollout) -> str:
    forward = [step for step in rollout.steps if step.ok and not step.goes_back]
    return outcome(
        rollout.machine.result,
        Done(
            rollout.is_reload,
            list(dict.fromkeys(step.slot for step in forward if step.action == "replace")),
            any(step.ok and step.goes_back for step in rollout.steps),
            bool(rollout.steps),
            rollout.config != rollout.before,
        ),
    )
