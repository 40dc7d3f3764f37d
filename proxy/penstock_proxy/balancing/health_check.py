"""Active health checks: when each joined worker of one service is probed.

Owns: the timing of the checks. Must not know: how a worker is probed (`probes`), and what follows
from a result (`pool`). Each member has its own task, so that a slow worker does not delay the
checks of others. Members can be added and removed while it runs.
"""

import asyncio
import logging
import random as random_
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import HEALTHY, MemberProbe, Probe, ProbeResult
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

    __slots__ = (
        "answered", "begins_later", "generation", "health", "limit", "member", "on_checked",
        "probe", "shortage_logged", "task", "wake",
    )  # fmt: skip

    def __init__(
        self, member: Member, probe: Probe | None, before: "_MemberChecks | None" = None
    ) -> None:
        """`before`: its checks until now, in another way."""
        self.member = member
        self.health, self.probe = member.health, probe
        self.begins_later = before is not None and member.state is MemberState.UP
        """The first check is due after an interval, or when somebody asks for it."""
        self.wake = asyncio.Event()
        self.limit: asyncio.Timeout | None = None
        """The time limit of the check that runs."""
        self.task: asyncio.Task[None] | None = None
        self.generation: int = member.generation if before is None else before.generation
        self.answered: bool = before is None or before.answered
        """The last check of this generation got an answer, be it a bad one; or there was none."""
        self.on_checked: Callable[[str], None] | None = before.on_checked if before else None
        """Called after each check up to the next good one; None: nobody waits for it."""
        self.shortage_logged = False
        """It was logged that the proxy had no descriptor or memory for the last check."""

    def stop_clock(self) -> None:
        """The result of the check is known: it is none without an answer any more."""
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(None)


class HealthChecker:
    """Checks the members of one pool for as long as `run` runs.

    It begins with the pool's members. A member that is added to the pool later, or removed
    from it, has to be added or removed here, too.
    """

    def __init__(
        self,
        pool: Pool,
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
        self._counters = counters
        self._clock = clock
        self._random = random
        self._checked: dict[int, _MemberChecks] = {}
        """By number of the member."""
        self._group: asyncio.TaskGroup | None = None
        """While `run` runs."""
        self._importing = asyncio.Lock()
        self._has_client = False
        """The client library of the probes is imported."""
        for member in pool.members:
            self.add(member)

    def configure(self, probe: Probe | None) -> None:
        """Check in this way from now on, and each member by its present `health`. Nothing is
        forgotten of what was found so far.

        Of those that this changes, a member that is down is checked at once: it may be well by the
        new settings. One that is up waits for its turn, or for `confirm`: two checks in a row
        could take it out of the rotation before anybody has judged the first.
        """
        self._probe = probe
        for checked in tuple(self._checked.values()):
            member = checked.member
            if (checked.health, checked.probe) != (member.health, probe):
                # A probe is made once for each task.
                self.remove(member.number)
                self._add(_MemberChecks(member, probe, checked))

    def add(self, member: Member) -> None:
        """Check this member, too. It must not be checked yet."""
        assert member.number not in self._checked
        self._add(_MemberChecks(member, self._probe))

    def _add(self, checked: _MemberChecks) -> None:
        self._checked[checked.member.number] = checked
        if self._group is not None:
            self._start(checked, self._group)

    def remove(self, number: int) -> None:
        """Stop checking this member. A check in progress is cancelled."""
        checked = self._checked.pop(number)
        if checked.task is not None:
            checked.task.cancel()
            # A probe may suppress the cancellation. Then the task ends after that probe.
            checked.wake.set()

    def check_now(self, number: int) -> None:
        """Check this member now: it has joined. Does nothing before `run`."""
        self._checked[number].wake.set()

    def confirm(self, number: int, then: Callable[[str], None]) -> None:
        """Check this member now, and then as always. Call `then` after each bad check that begins
        from now on, with what was wrong, and last with an empty text, after the first good one
        that finds it in the rotation. Asked again, only the last counts."""
        checked = self._checked[number]
        checked.on_checked = then
        # A check in progress began before: another one follows it at once.
        checked.wake.set()

    async def run(self) -> None:
        """Check until cancelled."""
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
            probe = await self._probe_of(checked, stack)
            if checked.begins_later:
                await self._rest(checked)
            while self._checked.get(member.number) is checked:
                if member.state is MemberState.ABSENT:
                    await wake.wait()
                wake.clear()
                if member.state is not MemberState.ABSENT:
                    await self._check(checked, probe)
                await self._rest(checked)

    async def _rest(self, checked: _MemberChecks) -> None:
        """Until its next check is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause(checked.member)):
                await checked.wake.wait()

    def _pause(self, member: Member) -> float:
        """Seconds from the end of one check to the next."""
        interval = member.health.interval
        if member.state is MemberState.CHECKING and member.bad_checks < MAX_STARTING_CHECKS:
            interval = min(interval, STARTING_INTERVAL_S)
        return interval * (1 + _JITTER * (2 * self._random() - 1))

    async def _check(self, checked: _MemberChecks, probe: MemberProbe) -> None:
        member = checked.member
        generation, started = member.generation, self._clock()
        on_checked = checked.on_checked
        result = await self._probe_once(checked, probe)
        if result is None or member.generation != generation:
            # The result belongs to its last process, not to the present one.
            return
        now = self._clock()
        self._counters.checks[member.slot, result.outcome] += 1
        self._counters.check_seconds.observe(now - started)
        self._note_answer(checked, result)
        is_listening = result.outcome != "refused"
        self._pool.checked(
            member, ok=result is HEALTHY, now=now, reason=result.reason, is_listening=is_listening
        )
        self._answer(checked, on_checked, result)
        if member.state is MemberState.CHECKING and member.bad_checks == member.health.fall:
            # It is not in the rotation yet, so nothing else is logged about it.
            _log.warning("no good check of %s yet: %s", _label(member), result.reason)

    def _answer(
        self, checked: _MemberChecks, asked: Callable[[str], None] | None, result: ProbeResult
    ) -> None:
        """This is the result of a check before which this was `asked`."""
        if asked is None or asked is not checked.on_checked:
            return
        if result is not HEALTHY:
            asked(result.reason or result.outcome)
        elif checked.member.state is MemberState.UP:
            checked.on_checked = None
            asked("")

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
            async with asyncio.timeout(checked.health.timeout) as checked.limit:
                result = await probe()
        except TimeoutError:
            return ProbeResult("timeout", f"no answer within {checked.health.timeout:g} s")
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

    async def _probe_of(self, checked: _MemberChecks, stack: AsyncExitStack) -> MemberProbe:
        member, probe, path = checked.member, checked.probe, checked.health.path
        if probe is not None:
            return lambda: probe(member)
        if path is None:
            # Read each time: its next process may listen at another address.
            return lambda: probes.connect(parse_address(member.address))
        async with self._importing:
            if not self._has_client:
                await probes.import_client()
                self._has_client = True
        return await stack.enter_async_context(probes.http_client(member, path, checked.stop_clock))


def _label(member: Member) -> str:
    """A member's name in log lines; one that gets its connections passed has no address."""
    return member.address or f"the worker in slot {member.slot}"
