"""Active health checks: when each joined worker of one service is checked, and within which time.

Owns: the checks in progress, and the time that each may take. Must not know: how a worker is
asked (`address_check`, `probes`), who is next (`check_schedule`), and what follows from a result
(`pool`). A slow worker does not delay the checks of others. Members can be added and removed while
it runs.

A member has no task of its own: with a thousand of them, to wait would cost more than to check. A
check by the address alone is callbacks; only a probe that the caller supplies has a task for as
long as it runs.
"""

import asyncio
import logging
import random as random_
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.address_check import AddressCheck, Outcome
from penstock_proxy.balancing.check_schedule import CheckSchedule
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import HEALTHY, Probe, ProbeResult
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import SocketAddress, is_resource_error, socket_address

STARTING_INTERVAL_S: Final = 0.2
"""Between checks of a worker that has just joined, so that a start does not take an interval."""
MAX_STARTING_CHECKS: Final = 50
"""After so many failed checks a worker is broken and not starting: the interval applies."""
_NO_ANSWER: Final = ("timeout", "refused")
"""Outcomes of a check to which nobody said anything."""
_MANY: Final = 16
"""With more members of all services than this, the first interval of each is a random part of one:
all have had their first check at about the same time, and would have all others then, too."""
_JITTER: Final = 0.1
"""Share of the interval. Without it all proxies would check all members at the same moment."""
_UNIX_HOST: Final = "localhost"
"""A unix socket has no host name, and many servers refuse an empty Host."""

_log = logging.getLogger("penstock.proxy")


class _Begun(NamedTuple):
    """A check in progress."""

    generation: int
    at: float
    """By the clock."""
    asked: Callable[[str], None] | None
    """Who waits for a good check that begins now."""


class _MemberChecks:
    """The checks of one member."""

    __slots__ = (
        "_begin", "_route", "_route_of", "again", "answered", "begins_later", "begun", "generation",
        "health", "limit", "member", "on_checked", "part", "probe", "running", "shortage_logged",
    )  # fmt: skip

    begun: _Begun
    """Set while one runs."""

    def __init__(
        self,
        member: Member,
        probe: Probe | None,
        begin: "Callable[[_MemberChecks], None]",
        before: "_MemberChecks | None" = None,
    ) -> None:
        """`begin`: called when the next one is due. `before`: its checks until now, in another
        way."""
        self.member = member
        self._begin = begin
        self.health, self.probe = member.health, probe
        self.begins_later = before is not None and member.state is MemberState.UP
        """The first check is due after an interval, or when somebody asks for it."""
        self.part = 0.0
        """So much of an interval is between two checks, until it is in the rotation; set after
        the first one."""
        self.running: AddressCheck | asyncio.Task[None] | None = None
        self.limit: asyncio.Handle | None = None
        """The time limit of the check that runs."""
        self.again = False
        """Somebody has asked for a check while one runs: the next one follows at once."""
        self.generation: int = member.generation if before is None else before.generation
        self.answered: bool = before is None or before.answered
        """The last check of this generation got an answer, be it a bad one; or there was none."""
        self.on_checked: Callable[[str], None] | None = before.on_checked if before else None
        """Called after each check up to the next good one; None: nobody waits for it."""
        self.shortage_logged = False
        """It was logged that the proxy had no descriptor or memory for the last check."""
        self._route_of = ("", "")

    def begin(self) -> None:
        """It is due."""
        self._begin(self)

    def route(self) -> tuple[SocketAddress, bytes]:
        """Where it is, and what it is asked. Looked up anew when its process has another address.
        OSError: it is no address."""
        member = self.member
        if self._route_of != (member.address, member.name):
            address = socket_address(parse_address(member.address))
            host = _UNIX_HOST if member.address.startswith("unix:") else probes.host_of(member)
            path = self.health.path
            self._route = address, b"" if path is None else probes.request(path, host)
            self._route_of = member.address, member.name
        return self._route

    def stop_clock(self) -> None:
        """The result of the check is known: it is none without an answer any more."""
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None

    def cancel(self) -> None:
        """End the check that runs; it has no result."""
        self.stop_clock()
        running, self.running = self.running, None
        if running is not None:
            running.cancel()


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
        schedule: CheckSchedule | None = None,
    ) -> None:
        """`probe`: how to check a member; None: by its address. `schedule`: that of all services
        of a process; None: one of its own.

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
        self._given_schedule = schedule
        self._schedule: CheckSchedule | None = None
        """While `run` runs."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group: asyncio.TaskGroup | None = None
        for member in pool.members:
            self.add(member)

    def configure(self, probe: Probe | None) -> None:
        """Check in this way from now on, and each member by its present `health`. Nothing is
        forgotten of what was found so far.

        Of those that this changes, a member that is down is checked at once: it may be well by the
        new settings. One that is up waits for its turn, or for `confirm`: two checks in a row
        could take it out of the rotation before anybody has judged the first.
        """
        for _ in self.configuring(probe):
            pass

    def configuring(self, probe: Probe | None) -> Iterator[None]:
        """`configure`, one member in each step."""
        self._probe = probe
        for checked in tuple(self._checked.values()):
            member = checked.member
            is_checked = self._checked.get(member.number) is checked
            if is_checked and (checked.health, checked.probe) != (member.health, probe):
                self.remove(member.number)
                self._add(_MemberChecks(member, probe, self._begin, checked))
            yield

    def add(self, member: Member) -> None:
        """Check this member, too. It must not be checked yet."""
        assert member.number not in self._checked
        self._add(_MemberChecks(member, self._probe, self._begin))

    def _add(self, checked: _MemberChecks) -> None:
        self._checked[checked.member.number] = checked
        if self._schedule is not None:
            self._begin_checks(checked, self._schedule)

    def remove(self, number: int) -> None:
        """Stop checking this member. A check in progress is cancelled."""
        checked = self._checked.pop(number)
        checked.cancel()
        if self._schedule is not None:
            self._schedule.discard(checked)

    def check_now(self, number: int) -> None:
        """Check this member now: it has joined. Does nothing before `run`."""
        checked = self._checked[number]
        if checked.running is not None:
            checked.again = True
        elif self._schedule is not None:
            self._schedule.put(checked, 0.0)

    def confirm(self, number: int, then: Callable[[str], None]) -> None:
        """Check this member now, and then as always. Call `then` after each bad check that begins
        from now on, with what was wrong, and last with an empty text, after the first good one
        that finds it in the rotation. Asked again, only the last counts."""
        self._checked[number].on_checked = then
        # A check in progress began before: another one follows it at once.
        self.check_now(number)

    async def run(self) -> None:
        """Check until cancelled."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self._group:
            self._schedule = schedule = self._given_schedule or CheckSchedule(self._loop)
            try:
                for number, checked in enumerate(tuple(self._checked.values()), 1):
                    if self._checked.get(checked.member.number) is checked:
                        self._begin_checks(checked, schedule)
                    if number % _MANY == 0:
                        await asyncio.sleep(0)
                # Also without members: they may be added later.
                await asyncio.Event().wait()
            finally:
                self._schedule = self._loop = None
                for checked in self._checked.values():
                    schedule.discard(checked)
                    checked.cancel()

    def _begin_checks(self, checked: _MemberChecks, schedule: CheckSchedule) -> None:
        seconds = self._pause(checked.member) if checked.begins_later else 0.0
        schedule.put(checked, seconds)

    def _rest(self, checked: _MemberChecks) -> None:
        """Until its next check is due."""
        schedule = self._schedule
        if schedule is not None:
            part = checked.part or (self._random() if len(schedule) > _MANY else 1.0)
            seconds = 0.0 if checked.again else part * self._pause(checked.member)
            checked.part = 1.0 if checked.member.state is MemberState.UP else part
            schedule.put(checked, seconds)

    def _pause(self, member: Member) -> float:
        """Seconds from the end of one check to the next."""
        interval = member.health.interval
        if member.state is MemberState.CHECKING and member.bad_checks < MAX_STARTING_CHECKS:
            interval = min(interval, STARTING_INTERVAL_S)
        return interval * (1 + _JITTER * (2 * self._random() - 1))

    # -- one check

    def _begin(self, checked: _MemberChecks) -> None:
        member = checked.member
        checked.again = False
        if member.state is MemberState.ABSENT:
            # It is checked when it joins: see `check_now`.
            return
        checked.begun = _Begun(member.generation, self._clock(), checked.on_checked)
        try:
            self._start(checked)
        except Exception as error:  # noqa: BLE001 — judged with all other results
            checked.running = None
            self._done(checked, error)
        else:
            if checked.running is not None:
                assert self._loop is not None
                late = partial(self._late, checked)
                checked.limit = self._loop.call_later(checked.health.timeout, late)

    def _start(self, checked: _MemberChecks) -> None:
        assert self._loop is not None
        assert self._group is not None
        if checked.probe is not None:
            asked = self._ask(checked, checked.probe)
            checked.running = self._group.create_task(asked)
            return
        address, request = checked.route()
        done = partial(self._address_checked, checked)
        checked.running = AddressCheck(self._loop, request, lambda _: checked.stop_clock(), done)
        checked.running.start(address)

    def _address_checked(
        self, checked: _MemberChecks, check: AddressCheck, outcome: Outcome
    ) -> None:
        if checked.running is check:
            checked.running = None
            self._done(checked, outcome)

    async def _ask(self, checked: _MemberChecks, probe: Probe) -> None:
        outcome: Outcome
        try:
            outcome = await probe(checked.member)
        except Exception as error:  # noqa: BLE001 — judged with all other results
            outcome = error
        # One whose time was over may have suppressed its cancellation.
        if checked.running is asyncio.current_task():
            checked.running = None
            self._done(checked, outcome)

    def _late(self, checked: _MemberChecks) -> None:
        checked.cancel()
        self._done(checked, TimeoutError())

    def _done(self, checked: _MemberChecks, outcome: Outcome) -> None:
        checked.stop_clock()
        result = self._judged(checked, outcome)
        try:
            # The result may belong to its last process, not to the present one.
            if result is not None and checked.member.generation == checked.begun.generation:
                self._note(checked, result)
        finally:
            if self._checked.get(checked.member.number) is checked:
                self._rest(checked)

    def _judged(self, checked: _MemberChecks, outcome: Outcome) -> ProbeResult | None:
        """Every error is a failed check. None: the proxy had no descriptor or memory, which says
        nothing about the worker."""
        if isinstance(outcome, OSError) and is_resource_error(outcome.errno or 0):
            self._log_shortage(checked, outcome)
            return None
        checked.shortage_logged = False
        if isinstance(outcome, ProbeResult):
            return outcome
        if isinstance(outcome, TimeoutError):
            return ProbeResult("timeout", f"no answer within {checked.health.timeout:g} s")
        if isinstance(outcome, OSError):
            return probes.from_error(outcome)
        # A bug must not end the checks of all members.
        _log.warning("check of %s", _label(checked.member), exc_info=outcome)
        return ProbeResult("failed", f"the check itself: {type(outcome).__name__}")

    def _note(self, checked: _MemberChecks, result: ProbeResult) -> None:
        member, begun, now = checked.member, checked.begun, self._clock()
        self._counters.checks[member.slot, result.outcome] += 1
        self._counters.check_seconds.observe(now - begun.at)
        self._note_answer(checked, result)
        is_listening = result.outcome != "refused"
        self._pool.checked(
            member, ok=result is HEALTHY, now=now, reason=result.reason, is_listening=is_listening
        )
        self._answer(checked, begun.asked, result)
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

    def _log_shortage(self, checked: _MemberChecks, error: OSError) -> None:
        if not checked.shortage_logged:
            checked.shortage_logged = True
            why = f"{error.strerror}; trying again until it can"
            _log.warning("cannot check %s: %s", _label(checked.member), why)


def _label(member: Member) -> str:
    """A member's name in log lines; one that gets its connections passed has no address."""
    if member.name:
        return f"{member.name} ({member.address})"
    return member.address or f"the worker in slot {member.slot}"
