"""Active checks: asks every joined worker of one service, again and again, how it is.

Owns the timing of the checks, nothing else: how a worker is asked is `probes`' business, what a
result means is the pool's decision. Each member has a task of its own, so that one slow
worker delays nobody else's check.
"""

import asyncio
import logging
import random as random_
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from penstock_proxy import probes
from penstock_proxy.config import Health, parse_address
from penstock_proxy.dial import is_our_lack
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.pool import Member, Pool
from penstock_proxy.probes import OK, Ask, Verdict, Way
from penstock_proxy.standing import Standing

QUICK_S: Final = 0.2
"""Between checks of one that has just joined: a start should not take an interval."""
QUICK_CHECKS: Final = 50
"""After so many bad ones it is not starting but broken, and is asked at leisure."""
_JITTER: Final = 0.1
"""Without it all members, and all fronts, would be asked at the same moment for ever."""

_log = logging.getLogger("penstock.checker")


class _Checked:
    """One member, and the task that checks it while there is one."""

    __slots__ = ("cannot", "member", "task", "wake")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.cannot = False
        """We lack something to ask it, and that was said."""


class Checker:
    """Checks the members of one pool for as long as `run` runs.

    The pool's members are checked from the start. Who adds one to the pool later, or
    removes one, does the same here.
    """

    def __init__(
        self,
        pool: Pool,
        health: Health,
        counters: ServiceCounters,
        *,
        clock: Callable[[], float],
        random: Callable[[], float] = random_.random,
        way: Way | None = None,
    ) -> None:
        """`way`: instead of a connection to the member's address."""
        self._way = way
        self._pool = pool
        self._health = health
        self._counters = counters
        self._clock = clock
        self._random = random
        self._checked: dict[int, _Checked] = {}
        """By slot."""
        self._group: asyncio.TaskGroup | None = None
        """While `run` runs."""
        for member in pool.members:
            self.add(member)

    def add(self, member: Member) -> None:
        """Check this one, too. Its slot must be free."""
        assert member.slot not in self._checked
        checked = self._checked[member.slot] = _Checked(member)
        if self._group is not None:
            self._begin(checked, self._group)

    def remove(self, slot: int) -> None:
        """Check this slot no more; a check that is under way is given up."""
        checked = self._checked.pop(slot)
        if checked.task is not None:
            checked.task.cancel()
            # Should whoever is asked just now swallow that, the task ends after the answer.
            checked.wake.set()

    def wake(self, slot: int) -> None:
        """Check this slot now: it has joined. Harmless before `run`."""
        self._checked[slot].wake.set()

    async def run(self) -> None:
        """Check until cancelled."""
        if self._health.path is not None and self._way is None:
            await probes.import_client()
        async with asyncio.TaskGroup() as group:
            for checked in self._checked.values():
                self._begin(checked, group)
            self._group = group
            try:
                # Even with nobody to check: the first one may be added later.
                await asyncio.Event().wait()
            finally:
                self._group = None

    def _begin(self, checked: _Checked, group: asyncio.TaskGroup) -> None:
        checked.task = group.create_task(self._watch(checked))

    async def _watch(self, checked: _Checked) -> None:
        """One member's checks, one after the other."""
        member, wake = checked.member, checked.wake
        async with AsyncExitStack() as stack:
            ask = await self._way_to(member, stack)
            while self._checked.get(member.slot) is checked:
                if member.standing is Standing.ABSENT:
                    await wake.wait()
                wake.clear()
                if member.standing is not Standing.ABSENT:
                    await self._check(checked, ask)
                try:
                    async with asyncio.timeout(self._pause(member)):
                        await wake.wait()
                except TimeoutError:
                    continue

    def _pause(self, member: Member) -> float:
        """Seconds from the end of one check to the next."""
        interval = self._health.interval
        if member.standing is Standing.CHECKING and member.fails < QUICK_CHECKS:
            interval = min(interval, QUICK_S)
        return interval * (1 + _JITTER * (2 * self._random() - 1))

    async def _check(self, checked: _Checked, ask: Ask) -> None:
        member = checked.member
        generation, started = member.generation, self._clock()
        verdict = await self._verdict(checked, ask)
        if verdict is None or member.generation != generation:
            # The answer of a process that has gone says nothing about the one after it.
            return
        now = self._clock()
        self._counters.checks[member.slot, verdict.result] += 1
        self._counters.check_seconds.observe(now - started)
        there = verdict.result != "refused"
        self._pool.checked(member, ok=verdict is OK, now=now, why=verdict.why, is_there=there)
        if member.standing is Standing.CHECKING and member.fails == self._health.fall:
            # Not in the rotation yet, so nothing else would say a word about it.
            _log.warning("no good check of %s yet: %s", _named(member), verdict.why)

    async def _verdict(self, checked: _Checked, ask: Ask) -> Verdict | None:
        """Ask in time; whatever goes wrong on the way is a bad check and no more.

        None if it was ourselves who could not ask.
        """
        member = checked.member
        try:
            async with asyncio.timeout(self._health.timeout):
                verdict = await ask()
        except TimeoutError:
            return Verdict("timeout", f"no answer within {self._health.timeout:g} s")
        except OSError as error:
            if is_our_lack(error.errno or 0):
                self._cannot(checked, error)
                return None
            return probes.of_error(error)
        except Exception as error:  # noqa: BLE001 — the one place for what nobody thought of
            # A bug, ours or the client library's, must not end the checks of everybody.
            _log.warning("check of %s", _named(member), exc_info=True)
            return Verdict("failed", f"the check itself: {type(error).__name__}")
        checked.cannot = False
        return verdict

    def _cannot(self, checked: _Checked, error: OSError) -> None:
        if not checked.cannot:
            checked.cannot = True
            why = f"{error.strerror}; trying again until it can"
            _log.warning("cannot check %s: %s", _named(checked.member), why)

    async def _way_to(self, member: Member, stack: AsyncExitStack) -> Ask:
        if (way := self._way) is not None:
            return lambda: way(member)
        path = self._health.path
        if path is None:
            # Read each time: another process in this slot may listen elsewhere.
            return lambda: probes.connect(parse_address(member.address))
        return await stack.enter_async_context(probes.http_client(member, path))


def _named(member: Member) -> str:
    """For people; a worker that gets its connections passed has no address."""
    return member.address or f"the worker in slot {member.slot}"
