"""Active health checks: when each joined worker of one service is probed.

Owns the timing of the checks, nothing else: how a worker is probed is up to `probes`, and what a
result means is the pool's decision. Each member has a task of its own, so one slow worker
delays nobody else's check. Members can be added and removed while it runs.
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
from penstock_proxy.balancing.probes import OK, MemberProbe, Probe, ProbeResult
from penstock_proxy.config import Health
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import is_resource_error

STARTING_INTERVAL_S: Final = 0.2
"""Between checks of a worker that has just joined: a start should not take an interval."""
MAX_STARTING_CHECKS: Final = 50
"""After so many bad ones it is not starting but broken: from then on the interval counts."""
_JITTER: Final = 0.1
"""Without it all members would be checked at the same moment for ever, by all proxies."""

_log = logging.getLogger("penstock.checker")


class _MemberChecks:
    """The checks of one member, and their task while `run` runs."""

    __slots__ = ("lack_logged", "member", "task", "wake")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.lack_logged = False
        """That we had no descriptor or memory for its last check was logged."""


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
    ) -> None:
        """`probe`: instead of a connection to the member's address."""
        self._probe = probe
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
        """Check this member as well. Its slot must be free."""
        assert member.slot not in self._checked
        checked = self._checked[member.slot] = _MemberChecks(member)
        if self._group is not None:
            self._start(checked, self._group)

    def remove(self, slot: int) -> None:
        """Stop checking this slot. A check in progress is cancelled."""
        checked = self._checked.pop(slot)
        if checked.task is not None:
            checked.task.cancel()
            # A probe may swallow the cancellation. Then the task ends after that probe.
            checked.wake.set()

    def check_now(self, slot: int) -> None:
        """Check this slot now: it has joined. Harmless before `run`."""
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
                # Without a member it waits, too: the first one may be added later.
                await asyncio.Event().wait()
            finally:
                self._group = None

    def _start(self, checked: _MemberChecks, group: asyncio.TaskGroup) -> None:
        checked.task = group.create_task(self._run_checks(checked))

    async def _run_checks(self, checked: _MemberChecks) -> None:
        """One member's checks, one after the other."""
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
            # The answer of a process that has gone says nothing about the one after it.
            return
        now = self._clock()
        self._counters.checks[member.slot, result.outcome] += 1
        self._counters.check_seconds.observe(now - started)
        there = result.outcome != "refused"
        self._pool.checked(member, ok=result is OK, now=now, why=result.why, is_listening=there)
        if member.state is MemberState.CHECKING and member.bad_checks == self._health.fall:
            # Not in the rotation yet, so nothing else would say a word about it.
            _log.warning("no good check of %s yet: %s", _label(member), result.why)

    async def _probe_once(self, checked: _MemberChecks, probe: MemberProbe) -> ProbeResult | None:
        """Probe within the time limit. Whatever goes wrong is a bad check, and no more.

        None if we had no descriptor or memory for it: that says nothing about the worker.
        """
        member = checked.member
        try:
            async with asyncio.timeout(self._health.timeout):
                result = await probe()
        except TimeoutError:
            return ProbeResult("timeout", f"no answer within {self._health.timeout:g} s")
        except OSError as error:
            if is_resource_error(error.errno or 0):
                self._log_lack(checked, error)
                return None
            return probes.from_error(error)
        except Exception as error:  # noqa: BLE001 — the one place for what nobody thought of
            # A bug, ours or the client library's, must not end the checks of everybody.
            _log.warning("check of %s", _label(member), exc_info=True)
            return ProbeResult("failed", f"the check itself: {type(error).__name__}")
        checked.lack_logged = False
        return result

    def _log_lack(self, checked: _MemberChecks, error: OSError) -> None:
        if not checked.lack_logged:
            checked.lack_logged = True
            why = f"{error.strerror}; trying again until it can"
            _log.warning("cannot check %s: %s", _label(checked.member), why)

    async def _probe_of(self, member: Member, stack: AsyncExitStack) -> MemberProbe:
        if (probe := self._probe) is not None:
            return lambda: probe(member)
        path = self._health.path
        if path is None:
            # Read each time: another process in this slot may listen elsewhere.
            return lambda: probes.connect(parse_address(member.address))
        return await stack.enter_async_context(probes.http_client(member, path))


def _label(member: Member) -> str:
    """For people; a worker that gets its connections passed has no address."""
    return member.address or f"the worker in slot {member.slot}"
