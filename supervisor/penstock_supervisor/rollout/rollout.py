"""One roll-out: what it is to do, what has happened so far, and how it ends.

Owns the record: its state, the steps of each slot, and the words for people. `rollouts` drives it,
and `rollout_state` says what follows from what. It is shown while it runs, and kept for a while
afterwards. No I/O; times are arguments.
"""

from collections.abc import Collection, Iterable
from typing import Final

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.config.changes import EVERYTHING
from penstock_supervisor.config.model import Config
from penstock_supervisor.rollout.replacement_step import OVERLAP, StepState
from penstock_supervisor.rollout.request_totals import RequestTotals, in_words
from penstock_supervisor.rollout.rollout_state import (
    Result,
    RolloutCommand,
    RolloutEvent,
    RolloutMachine,
    RolloutState,
)
from penstock_supervisor.rollout.step import Step
from penstock_supervisor.snapshot import RolloutView, StepView

_MAX_ROUNDS: Final = 2
DIFFERING: Final = "~"
"""Among the names of services, in place of all: only workers that differ from what is in force are
replaced. No service has this name."""
_WAITING: Final = "waiting"
_WITHDRAWN: Final = "withdrawn"
_WHY_WITHDRAWN: Final = "somebody has asked for it anew"


class Rollout:
    """`config`: the configuration that it brings the run to."""

    changes: tuple[str, ...] = ()
    """A line for each thing that is changed or left alone."""
    reason = ""
    detail = ""
    requests: int | None = None
    failed: int | None = None
    """Requests in the time of the roll-out, and how many of these failed; None: not known."""
    uncounted: tuple[str, ...] = ()
    """Processes whose last numbers are not known."""
    uncounted_services: tuple[str, ...] = ()
    is_counted = False
    verdicts: tuple[str, ...] = ()
    """What was found of each canary that was no worse than the others."""
    superseded_by: int | None = None
    is_moved = False
    """Directories led elsewhere when it was asked for."""
    is_deploy = False
    """Its configuration is the one before: it means other files of the programs."""
    goes_back = False
    """Steps that begin now are on the way back."""
    before: Config | None = None
    """The configuration that was in force when it began."""
    base: Config | None = None
    """What was in force, or was to be, when it was asked for: what it changes is told by that."""
    is_joined = False
    """Somebody has joined, and what has begun has to begin anew."""
    is_awaited = False
    """Another one waits for its end."""
    waits_for = ""
    """What has to end before it begins."""
    order = 0
    """Of its last request, among all reloads."""
    follows_unfinished = False
    """It goes on from one that ended half-way: before it not all workers are of one version."""
    leftover = ""
    """Why it cannot be said that one version serves after its end."""
    outcome = ""
    """What is so after its end, if nothing is left over."""
    begun_at = 0.0
    """When it began to do something."""
    cause = ""
    """Why it begins by itself; empty: somebody has asked for it."""

    def __init__(
        self,
        number: int,
        config: Config,
        names: Iterable[str],
        slots: Iterable[Slot],
        *,
        time_of_day: float,
    ) -> None:
        """`names`: services whose workers are replaced in any case, and `slots`: likewise single
        workers. `time_of_day`: of its request, in seconds since 1970."""
        self.number = number
        self.config = config
        self.names: set[str] = set()
        self.slots: set[Slot] = set()
        self._add(names, slots)
        self.machine = RolloutMachine()
        self.targets: dict[Slot, None] = {}
        """What has to be changed, in order."""
        self.steps: list[Step] = []
        """Begun ones, in the order in which they began; those on the way back as well."""
        self._begun: set[Slot] = set()
        """Asked for since they were wanted last, so they need not be asked for again."""
        self._round: list[Step] = []
        """Of `steps`, those that began since the last time that all began anew."""
        self._rounds = 1
        self._time_of_day = time_of_day
        self._taken_over: set[str] = set()
        """Of `names`: those that only superseded ones were asked for."""

    @property
    def state(self) -> RolloutState:
        return self.machine.state

    @property
    def is_over(self) -> bool:
        return self.state is RolloutState.ENDED

    @property
    def is_open(self) -> bool:
        """It goes on as it was asked to: it has not failed, and nobody supersedes it."""
        return self.superseded_by is None and self.goes_forward and self.first_failed() is None

    @property
    def can_be_joined(self) -> bool:
        """Can another request still have its part in it? While nothing has begun: any number of
        them. Once it may begin anew for somebody. Who comes after that has one of his own: if all
        of them began anew for everybody, none would ever end."""
        return self.is_open and (not self._round or self._rounds < _MAX_ROUNDS)

    @property
    def is_applied(self) -> bool:
        """It goes forward, and what it reads of directories and links is read."""
        return self.state in (RolloutState.ROLLING, RolloutState.CANARY)

    @property
    def goes_forward(self) -> bool:
        """It is on its way to the new version."""
        return self.state in _FORWARD

    @property
    def to_configuration(self) -> Config | None:
        """What will be in force if nothing else happens; None: what is in force already."""
        if self.goes_forward:
            return self.config if self.superseded_by is None else None
        return self.before if self.state in _BACK else None

    @property
    def is_reload(self) -> bool:
        """It brings a configuration into force, and does not only replace single workers."""
        return bool(self.names)

    @property
    def reads_anew(self) -> bool:
        """Names are looked up and links are followed. Who begins by itself does not do that: it
        brings all to what serves, and what links lead to may be what has just been rejected."""
        return self.is_reload and not self.cause

    def can_take(self, names: Collection[str], slots: Collection[Slot]) -> bool:
        """Can such a request join it, as far as that depends on what it does? A reload has all
        read anew."""
        may_read = self.reads_anew or (self.is_reload and self.state is RolloutState.WAITING)
        return may_read or (bool(slots) and not names)

    @property
    def why_it_waits(self) -> str:
        """Empty: it does not, or not for anything."""
        return self.waits_for if self.state is RolloutState.WAITING else ""

    def handle(self, event: RolloutEvent) -> tuple[RolloutCommand, ...]:
        return self.machine.handle(event)

    def step_changed(self, step: Step) -> None:
        """A step has begun, or its state has changed."""
        if step not in self.steps:
            self.steps.append(step)
            self._round.append(step)
            self._begun.add(step.slot)
            step.goes_back = self.goes_back
        if step.is_outdated and step.state is StepState.FAILED:
            # Another one takes its place, and tells what becomes of the slot.
            self.steps.remove(step)
        elif has_failed(step) and not self.reason and self.goes_forward:
            self.reason = f"{step.name}: {step.reason}"
            self.detail = step.detail

    def count(self, seen: RequestTotals) -> None:
        """These were the requests in its time."""
        self.requests, self.failed = seen.requests, seen.failed
        self.uncounted, self.uncounted_services = tuple(seen.uncounted), seen.uncounted_services
        self.is_counted = True

    def requests_in_words(self) -> str:
        return in_words(self.requests, self.failed, self.uncounted, self.uncounted_services)

    def fail(self, reason: str) -> None:
        """It fails for a reason that is not a step's."""
        self.reason = self.reason or reason

    def join(self, names: Iterable[str], slots: Iterable[Slot]) -> None:
        """Somebody else has asked for the same: whatever began before counts no more."""
        named, single = set(names), set(slots)
        if self._round and not (named or single):
            # What runs in all workers was read before. Without that it is the same request twice.
            named = {service.name for service in self.config.services} | {EVERYTHING}
        self._add(named, single)
        if named or not single:
            # Somebody wants it now.
            self.cause = ""
        scope = named | single or {EVERYTHING}
        self._begun = {slot for slot in self._begun if not _is_in(slot, scope)}
        again = [step for step in self._round if _is_in(step.slot, scope)]
        if again:
            self._round.clear()
            self._rounds += 1
            self.is_joined = True
            self._outdate(again)

    def begin_anew(self, waiting: Collection[Slot]) -> set[Slot]:
        """For somebody who has joined: all that has not taken over its slot is wanted again, also
        what nobody asked for anew, so that a canary goes before the others. Returns these slots;
        the caller takes them back. `waiting`: those whose step has not begun."""
        self.is_joined = False
        taken_back = [step for step in self.steps if step.state in OVERLAP]
        self._outdate(taken_back)
        slots = {*waiting, *(step.slot for step in taken_back)}
        self._begun -= slots
        self._round = [step for step in self._round if step not in taken_back]
        return slots

    def _outdate(self, steps: Iterable[Step]) -> None:
        for step in steps:
            # One that has its slot goes on. So does one whose old process has to end first: its new
            # one is not started yet.
            step.is_outdated = step.state in (*OVERLAP, StepState.FAILING)

    def asked(self, slots: Iterable[Slot]) -> None:
        """Their steps are asked for. One for which there is nothing to do never begins."""
        self._begun.update(slots)

    def take_over(self, other: "Rollout") -> None:
        """This one supersedes `other`, and does what that was asked to do in any case. Otherwise
        a deploy of code would end half-way, with workers of two versions for ever."""
        wanted = other.names - {EVERYTHING}
        if other.is_deploy and EVERYTHING in other.names:
            wanted.update(service.name for service in other.config.services)
        self._taken_over |= (wanted - self.names) | other._taken_over
        self.names |= wanted
        if other.slots:
            known = {service.name for service in self.config.services}
            self.slots.update(slot for slot in other.slots if slot[0] in known)

    def names_left(self) -> set[str]:
        """Whose workers may have to be replaced if it fails, to be of one version again: what
        began before it, and was left half-way."""
        return self._taken_over | {DIFFERING}

    def _add(self, names: Iterable[str], slots: Iterable[Slot]) -> None:
        named, single = set(names), set(slots)
        self.names |= named if named or single else {EVERYTHING}
        self.slots |= single

    def aim_at(self, slots: Iterable[Slot]) -> None:
        """These have to be changed as well."""
        self.targets.update(dict.fromkeys(slots))

    def to_do(self) -> list[Slot]:
        """Targets whose step has not begun since they were asked for last. Who is removed is not
        removed again."""
        removed = {step.slot for step in self.done() if step.action == "remove"}
        return [slot for slot in self.targets if slot not in removed and slot not in self._begun]

    def first_failed(self) -> Step | None:
        """The first step that has failed on the way forward."""
        return next(filter(has_failed, self.steps), None)

    def changed(self) -> list[Slot]:
        """The slots that have ever got another process, or lost it, in order."""
        return list(dict.fromkeys(step.slot for step in self.steps if step.ok))

    def forced(self, slot: Slot) -> bool:
        """Is this one replaced in any case, because its files may be other ones now?"""
        return self.has_new_files(slot[0]) or slot in self.slots

    def has_new_files(self, service: str) -> bool:
        """May the files of this service be other ones, so that all its workers are replaced?"""
        return service in self.names or (self.is_deploy and EVERYTHING in self.names)

    def done(self) -> list[Step]:
        """The steps that have changed their slot, the last one of each slot."""
        last = {step.slot: step for step in self.steps}
        return [step for step in last.values() if step.ok]

    def view(self, waiting: Iterable[Slot]) -> RolloutView:
        """`waiting`: slots that are to come. Its duration is set by `records`."""
        result = self.machine.result if self.is_over else None
        return RolloutView(
            number=self.number,
            state=self.state.value,
            result="" if result is None else result.value,
            reason=self.reason or self.why_it_waits if result is not Result.SUCCEEDED else "",
            detail=self.detail if result is not Result.SUCCEEDED else "",
            changes=self.changes,
            steps=(*map(_step_view, self.steps), *map(_waiting_view, waiting)),
            started_at=self._time_of_day,
            duration_s=0.0,
            requests=self.requests,
            failed=self.failed,
            uncounted=self.uncounted,
            uncounted_services=self.uncounted_services,
            verdicts=self.verdicts,
            superseded_by=self.superseded_by if result in (None, Result.SUPERSEDED) else None,
            leftover=self.leftover,
            outcome=self.leftover or self.outcome if result is not None else "",
        )


_FORWARD: Final = (
    RolloutState.WAITING,
    RolloutState.APPLYING,
    RolloutState.ROLLING,
    RolloutState.CANARY,
)


_BACK: Final = (RolloutState.ROLLING_BACK, RolloutState.REVERTING)


def has_failed(step: Step) -> bool:
    """Something was wrong with it, and it was still wanted."""
    return step.state is StepState.FAILED and not (step.is_cancelled or step.is_outdated)


def _is_in(slot: Slot, scope: set[str | Slot]) -> bool:
    """`scope`: services, single workers, or EVERYTHING."""
    return bool(scope & {EVERYTHING, slot[0], slot})


def _step_view(step: Step) -> StepView:
    service, slot = step.slot
    action = "roll_back" if step.goes_back else step.action
    if step.is_outdated:
        pids = step.old_pid, step.new_pid
        return StepView(service, slot, action, _WITHDRAWN, *pids, _WHY_WITHDRAWN)
    # Nothing was wrong with it: whoever reads only the state must not take it for a failure.
    state = _WITHDRAWN if step.is_cancelled else step.state.value
    return StepView(service, slot, action, state, step.old_pid, step.new_pid, step.reason)


def _waiting_view(slot: Slot) -> StepView:
    return StepView(*slot, "replace", _WAITING, None, None, "")
