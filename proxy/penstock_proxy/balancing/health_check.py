"""Active health checks: when each joined worker of one service is probed.

Owns: the timing of the checks. Must not know: how a worker is probed (`probes`), and what follows
from a result (`pool`). Each member has its own task, so that a slow worker does not delay the
checks of others. Members can be added and removed while it runs.
"""

import asyncio
import logging
import random as random_
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import HEALTHY, MemberProbe, Probe, ProbeResult
from penstock_proxy.config import Health
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import is_resource_error

STARTING_INTERVAL_S: Final = 0.2
"""Between checks of a worker that has just joined, so that a start does not take an interval."""
MAX_STARTING_CHECKS: Final = 50
"""After so many failed checks a worker is broken and not starting: the interval applies."""
_NO_ANSWER: Final = ("timeout", "refused")
"""Outcomes of a check to which nobody said anything."""
_JITTER: Final = 0.1
"""Share of the interval. Without it all proxies would check all members at the same moment."""

_log = logging.getLogger("penstock.proxy")


class _MemberChecks:
    """The checks of one member, and their task while `run` runs."""

    __slots__ = ("answered", "generation", "member", "shortage_logged", "task", "wake")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.generation = member.generation
        self.answered = True
        """The last check of this generation got an answer, be it a bad one; or there was none."""
        self.shortage_logged = False
        """It was logged that the proxy had no descriptor or memory for the last check."""


class HealthChecker:
    """Checks the members of one pool for as long as `run` runs.

    It begins with the pool's members. A member that is added to the pool later, or removed
    from it, has to be added or removed here, too.
    """

    def __init__(
        self,
        pool: Pool,
        health: Health,
        counters: ServiceCounters,
        *,
        clock: Callable[[], float],
        random: Callable[[], float] = random_.random,
        probe: Probe | None = None,
        on_answer: Callable[[Member, bool], None] = lambda *_: None,
    ) -> None:
        """`probe`: how to check a member; None: by its address.

        `on_answer(member, False)` is called after each check that got no answer at all, and
        `on_answer(member, True)` after the first one that got an answer again.
        """
        self._probe = probe
        self._on_answer = on_answer
        self._pool = pool
        self._health = health
        self._counters = counters
        self._clock = clock
        self._random = random
        self._checked: dict[int, _MemberChecks] = {}
        """By slot."""
        self._group: asyncio.TaskGroup | None = None
        """While `run` runs."""
        for member in pool.members:
            self.add(member)

    def add(self, member: Member) -> None:
        """Check this member, too. Its slot must not be checked yet."""
        assert member.slot not in self._checked
        checked = self._checked[member.slot] = _MemberChecks(member)
        if self._group is not None:
            self._start(checked, self._group)

    def remove(self, slot: int) -> None:
        """Stop checking this slot. A check in progress is cancelled."""
        checked = self._checked.pop(slot)
        if checked.task is not None:
            checked.task.cancel()
            # A probe may suppress the cancellation. Then the task ends after that probe.
            checked.wake.set()

    def check_now(self, slot: int) -> None:
        """Check this slot now: it has joined. Does nothing before `run`."""
        self._checked[slot].wake.set()

    async def run(self) -> None:
        """Check until cancelled."""
        if self._health.path is not None and self._probe is None:
            await probes.import_client()
        async with asyncio.TaskGroup() as group:
            for checked in self._checked.values():
                self._start(checked, group)
            self._group = group
            try:
                # Also without members: they may be added later.
                await asyncio.Event().wait()
            finally:
                self._group = None

    def _start(self, checked: _MemberChecks, group: asyncio.TaskGroup) -> None:
        checked.task = group.create_task(self._run_checks(checked))

    async def _run_checks(self, checked: _MemberChecks) -> None:
        """Check one member again and again."""
        member, wake = checked.member, checked.wake
        async with AsyncExitStack() as stack:
            probe = await self._probe_of(member, stack)
            while self._checked.get(member.slot) is checked:
                if member.state is MemberState.ABSENT:
                    await wake.wait()
                wake.clear()
                if member.state is not MemberState.ABSENT:
                    await self._check(checked, probe)
                try:
                    async with asyncio.timeout(self._pause(member)):
                        await wake.wait()
                except TimeoutError:
                    continue

    def _pause(self, member: Member) -> float:
        """Seconds from the end of one check to the next."""
        interval = self._health.interval
        if member.state is MemberState.CHECKING and member.bad_checks < MAX_STARTING_CHECKS:
            interval = min(interval, STARTING_INTERVAL_S)
        return interval * (1 + _JITTER * (2 * self._random() - 1))

    async def _check(self, checked: _MemberChecks, probe: MemberProbe) -> None:
        member = checked.member
        generation, started = member.generation, self._clock()
        result = await self._probe_once(checked, probe)
        if result is None or member.generation != generation:
            # The result belongs to the slot's last process, not to the present one.
            return
        now = self._clock()
        self._counters.checks[member.slot, result.outcome] += 1
        self._counters.check_seconds.observe(now - started)
        self._note_answer(checked, result)
        is_listening = result.outcome != "refused"
        self._pool.checked(
            member, ok=result is HEALTHY, now=now, reason=result.reason, is_listening=is_listening
        )
        if member.state is MemberState.CHECKING and member.bad_checks == self._health.fall:
            # It is not in the rotation yet, so nothing else is logged about it.
            _log.warning("no good check of %s yet: %s", _label(member), result.reason)

    def _note_answer(self, checked: _MemberChecks, result: ProbeResult) -> None:
        """Report whether anything answered. A bad answer is one, too: who gives it lives."""
        member, answered = checked.member, result.outcome not in _NO_ANSWER
        if checked.generation != member.generation:
            checked.generation, checked.answered = member.generation, True
        if not answered or not checked.answered:
            self._on_answer(member, answered)
        checked.answered = answered

    async def _probe_once(self, checked: _MemberChecks, probe: MemberProbe) -> ProbeResult | None:
        """Probe within the time limit. Every error is a failed check.

        None: the proxy had no descriptor or memory, which says nothing about the worker.
        """
        member = checked.member
        try:
            async with asyncio.timeout(self._health.timeout):
                result = await probe()
        except TimeoutError:
            return ProbeResult("timeout", f"no answer within {self._health.timeout:g} s")
        except OSError as error:
            if is_resource_error(error.errno or 0):
                self._log_shortage(checked, error)
                return None
            return probes.from_error(error)
        except Exception as error:  # noqa: BLE001 — the one place for unexpected errors
            # A bug, ours or the client library's, must not end the checks of all members.
            _log.warning("check of %s", _label(member), exc_info=True)
            return ProbeResult("failed", f"the check itself: {type(error).__name__}")
        checked.shortage_logged = False
        return result

    def _log_shortage(self, checked: _MemberChecks, error: OSError) -> None:
        if not checked.shortage_logged:
            checked.shortage_logged = True
            why = f"{error.strerror}; trying again until it can"
            _log.warning("cannot check %s: %s", _label(checked.member), why)

    async def _probe_of(self, member: Member, stack: AsyncExitStack) -> MemberProbe:
        if (probe := self._probe) is not None:
            return lambda: probe(member)
        path = self._health.path
        if path is None:
            # Read each time: the slot's next process may listen at another address.
            return lambda: probes.connect(parse_address(member.address))
        return await stack.enter_async_context(probes.http_client(member, path))


def _label(member: Member) -> str:
    """A member's name in log lines; one that gets its connections passed has no address."""
    return member.address or f"the worker in slot {member.slot}"
