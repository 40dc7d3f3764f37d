"""What is measured, for how long, and in which order.

A *pass* is one measurement of every subject, one directly after the other. So a machine that
gets slower affects all subjects alike. Each pass begins with another subject, because the first
one after a pause finds a cooler processor. A round has one pass for each kind of load.

Rounds are added until they tell the subjects apart, or until the time is up; the number of them
is not known before. A pass is done for all subjects or for none: half of the subjects could be
compared with nothing. What a reader misses least is left out first.

No I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from penstock_supervisor.compare.report.result import LOADS, FaultKind, LoadKind

Kind = Literal["keepalive", "connect", "rate", "held", "kill", "roll", "block"]

QUICK_S: Final = 57.0
"""The whole time of a quick comparison, its start included."""
DEFAULT_S: Final = 265.0
"""The same otherwise, if the least number of rounds does not take longer."""
START_S: Final = 7.0
"""To measure the noise, and for all subjects to start, on a small machine."""
STOP_S: Final = 1.5
OVERHEAD_S: Final = 0.25
"""For the generator's processes to start and end, for each load."""
_RESERVED_FDS: Final = 200
"""Descriptors of a process that are not for clients."""
_FDS_PER_CONNECTION: Final = 3
"""Descriptors of a relayed connection, if all of them were in one process."""
_HELD_STEPS: Final = (0.1, 0.25, 0.5, 0.75, 1.0)
RATE_SHARE: Final = 0.5
"""Constant-rate load, as a share of the slowest subject's throughput. The subject is busy, but
its queue does not grow without end."""
FAULT_RATE_SHARE: Final = 0.2
"""The same for a load with a fault: the remaining workers can serve it."""
MAX_RATE: Final = 20_000.0
MIN_RATE: Final = 20.0

RECOVERY_S: Final = 10.0
"""For replaced workers to come back after the load with a fault has ended."""
BLOCKED_S: Final = 1.0
LOAD_BEFORE_FAULT_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """How much is measured."""

    least_rounds: int
    """So many in any case, but for a quick comparison on a slow machine."""
    most_rounds: int
    seconds: float
    """Of one load in one round."""
    warmup_s: float
    connections: int
    """Of a load."""
    held: int
    """The largest number of idle connections."""
    fault_s: Mapping[FaultKind, float]
    """Seconds of the load with a fault."""
    max_total_s: float | None
    """Of everything. None: no limit."""
    quick: bool


class PlanStep(NamedTuple):
    """One measurement of one subject."""

    kind: Kind
    subject: str
    round: int
    seconds: float
    """About how long it takes."""


Pass = tuple[PlanStep, ...]
"""The same measurement of every subject."""


def measures(*, quick: bool, rounds: int | None, max_fds: int) -> Measures:
    """Choose for a minute, or for a few. `max_fds`: descriptors that a process may open.

    `rounds`: exactly so many, however long they take.
    """
    max_connections = max(10, (max_fds - _RESERVED_FDS) // _FDS_PER_CONNECTION)
    if quick:
        return Measures(
            least_rounds=rounds or 3,
            most_rounds=rounds or 6,
            seconds=0.35,
            warmup_s=0.2,
            connections=min(32, max_connections),
            held=min(400, max_connections),
            fault_s={"kill": 1.1, "roll": 1.7, "block": 1.5},
            max_total_s=QUICK_S if rounds is None else None,
            quick=True,
        )
    return Measures(
        least_rounds=rounds or 5,
        most_rounds=rounds or 20,
        seconds=1.0,
        warmup_s=1.0,
        connections=min(64, max_connections),
        held=min(1000, max_connections),
        fault_s={"kill": 2.5, "roll": 5.0, "block": 2.5},
        max_total_s=DEFAULT_S if rounds is None else None,
        quick=False,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """All passes, without the number of rounds."""

    ours: Sequence[str]
    """Subjects that are run by us: they get faults."""
    others: Sequence[str]
    wanted: Measures

    @property
    def subjects(self) -> tuple[str, ...]:
        return (*self.ours, *self.others)

    def first(self) -> tuple[Pass, ...]:
        """Before all loads: the growth of a process shows only before loads made it grow."""
        return self._passes(_pass("held", self.subjects, 0, 0.5 + self.wanted.held / 1000, 0))

    def round(self, number: int) -> tuple[Pass, ...]:
        duration = self.wanted.seconds + OVERHEAD_S
        return self._passes(
            *(_pass(load, self.subjects, number, duration, number + n)
              for n, load in enumerate(LOADS))
        )  # fmt: skip

    def last(self) -> tuple[Pass, ...]:
        """The faults, because they replace processes that were warmed up by new ones."""
        kinds: tuple[FaultKind, ...] = ("kill", "block", "roll")
        return self._passes(
            *(_pass(kind, self.ours, 0, self.wanted.fault_s[kind] + OVERHEAD_S, n)
              for n, kind in enumerate(kinds))
        )  # fmt: skip

    def _passes(self, *passes: Pass) -> tuple[Pass, ...]:
        return tuple(one for one in passes if one)

    def has_time_for(self, number: int, elapsed_s: float) -> bool:
        """For this round, and for the faults after it?"""
        total = self.wanted.max_total_s
        if total is None or number < self.wanted.least_rounds:
            return True
        needed = total_s(self.round(number)) + total_s(self.last()) + STOP_S
        return elapsed_s + needed <= total

    def expected_s(self) -> tuple[float, float]:
        """How long everything takes: with the least number of rounds, and with the most."""
        one_round, faults = total_s(self.round(0)), total_s(self.last())
        required = START_S + total_s(self.first()) + STOP_S + one_round * self.wanted.least_rounds
        least = required + faults
        most = least + one_round * (self.wanted.most_rounds - self.wanted.least_rounds)
        if self.wanted.max_total_s is None:
            return least, most
        if self.wanted.quick:
            # It goes without faults rather than take longer.
            least = min(least, max(required, self.wanted.max_total_s))
        return least, min(most, max(least, self.wanted.max_total_s))


def _pass(kind: Kind, names: Sequence[str], number: int, seconds: float, turn: int) -> Pass:
    first = turn % len(names) if names else 0
    order = (*names[first:], *names[:first])
    return tuple(PlanStep(kind, name, number, seconds) for name in order)


def seconds(steps: Pass) -> float:
    return sum(step.seconds for step in steps)


def total_s(passes: Sequence[Pass]) -> float:
    return sum(map(seconds, passes))


def fits(steps: Pass, elapsed_s: float, wanted: Measures) -> bool:
    """Is there time for this pass, and for stopping everything after it?"""
    if wanted.max_total_s is None or is_required(steps):
        return True
    return elapsed_s + seconds(steps) + STOP_S <= wanted.max_total_s


def is_required(steps: Pass) -> bool:
    """Must this pass be done? A comparison needs at least one round of each load."""
    return steps[0].round == 0 and steps[0].kind in LOADS


def held_steps(held: int) -> tuple[int, ...]:
    """The numbers of open connections at which descriptors and memory are read."""
    return tuple(sorted({max(1, round(held * share)) for share in _HELD_STEPS}))


def rate(throughputs: Sequence[float], share: float) -> float:
    """Requests a second that even the slowest subject can serve; the same rate for all.

    A subject without any throughput is ignored: its rate would be zero, for all.
    """
    slowest = min((one for one in throughputs if one > 0), default=0.0)
    return float(round(min(MAX_RATE, max(MIN_RATE, slowest * share))))


def is_load(kind: Kind) -> bool:
    return kind in LOADS


def load_of(kind: Kind) -> LoadKind | None:
    return kind if kind in ("keepalive", "connect", "rate") else None


def fault_of(kind: Kind) -> FaultKind | None:
    return kind if kind in ("kill", "roll", "block") else None
