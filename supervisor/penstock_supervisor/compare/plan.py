"""What is measured, for how long and in which order.

A round measures every kind of load, and within one kind every subject, one directly after
the other: a machine that gets slower hurts all alike. Each pass begins with another subject,
because the first one after a pause finds a cooler processor.

A pass is whole or it is not done at all: half of the subjects under a load would be
compared with nothing. So when the time is up, passes are left out from the end, which is
ordered by what a reader can do without.

No I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from penstock_supervisor.compare.report.result import FAULTS, LOADS, FaultKind, LoadKind

Kind = Literal["keepalive", "connect", "rate", "held", "kill", "roll", "block"]

QUICK_S: Final = 57.0
"""All that a quick comparison may take, its start included."""
START_S: Final = 6.0
"""For all subjects to come up, on a small machine."""
STOP_S: Final = 1.5
_OVERHEAD_S: Final = 0.25
"""Beside each load: the generator's processes start and end."""
_RESERVED: Final = 200
"""Descriptors of a process that are not clients'."""
_PER_CONNECTION: Final = 3
"""Descriptors that a relayed connection takes when everything is in one process."""
_STEPS: Final = (0.1, 0.25, 0.5, 0.75, 1.0)
BUSY: Final = 0.5
"""Share of the slowest subject's throughput that the constant-rate load asks for: busy, and
not yet a queue that only grows."""
CALM: Final = 0.2
"""The same while workers are missing: the ones that are left can carry it."""
MOST_A_SECOND: Final = 20_000.0
LEAST_A_SECOND: Final = 20.0

GRACE_S: Final = 10.0
"""After the load of a fault: for those that were replaced to come back."""
BLOCKED_S: Final = 1.0
CALM_BEFORE_S: Final = 0.3
"""Of the load before the fault comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """How much is measured."""

    rounds: int
    seconds: float
    """One load in one round."""
    warmup_s: float
    connections: int
    """Of a load."""
    held: int
    """Connections that are open at last."""
    fault_s: Mapping[FaultKind, float]
    """The load around a fault."""
    most_s: float | None
    """Of everything; None: as long as it takes."""
    quick: bool


class Step(NamedTuple):
    """One measurement of one subject."""

    kind: Kind
    subject: str
    round: int
    seconds: float
    """About how long it takes."""


Pass = tuple[Step, ...]
"""The same measurement of every subject."""


def measures(*, quick: bool, rounds: int | None, descriptors: int) -> Measures:
    """What to do in a minute, or in a few. `descriptors`: what a process may have open."""
    most = max(10, (descriptors - _RESERVED) // _PER_CONNECTION)
    if quick:
        return Measures(
            rounds=rounds or 1,
            seconds=0.6,
            warmup_s=0.2,
            connections=min(32, most),
            held=min(400, most),
            fault_s={"kill": 1.1, "roll": 1.7, "block": 1.5},
            # Who asks for more rounds takes the time for them.
            most_s=QUICK_S if rounds is None else None,
            quick=True,
        )
    return Measures(
        rounds=rounds or 3,
        seconds=3.0,
        warmup_s=1.0,
        connections=min(64, most),
        held=min(1000, most),
        fault_s={"kill": 4.0, "roll": 8.0, "block": 4.0},
        most_s=None,
        quick=False,
    )


def passes(ours: Sequence[str], others: Sequence[str], wanted: Measures) -> tuple[Pass, ...]:
    """Everything in order. `others` are run by somebody else, so nothing is broken there."""
    everybody = (*ours, *others)
    found: list[Pass] = []
    # First: what a process grows by is only seen while it has not grown for something else.
    found.append(_pass("held", everybody, 0, 0.5 + wanted.held / 1000, 0))
    for number in range(wanted.rounds):
        for load in LOADS:
            seconds = wanted.seconds + _OVERHEAD_S
            found.append(_pass(load, everybody, number, seconds, len(found)))
    for fault in ("kill", "block", "roll"):
        # Last: they leave other processes behind than those that were warmed up.
        assert fault in FAULTS
        seconds = wanted.fault_s[fault] + _OVERHEAD_S
        found.append(_pass(fault, ours, 0, seconds, len(found)))
    return tuple(one for one in found if one)


def _pass(kind: Kind, names: Sequence[str], number: int, seconds: float, turn: int) -> Pass:
    first = turn % len(names) if names else 0
    order = (*names[first:], *names[:first])
    return tuple(Step(kind, name, number, seconds) for name in order)


def seconds(of: Pass) -> float:
    return sum(step.seconds for step in of)


def fits(one: Pass, elapsed_s: float, wanted: Measures) -> bool:
    """Is there time for this pass, and for the end?"""
    if wanted.most_s is None or is_needed(one):
        return True
    return elapsed_s + seconds(one) + STOP_S <= wanted.most_s


def is_needed(one: Pass) -> bool:
    """Without one round of each load there is nothing to say."""
    return one[0].round == 0 and one[0].kind in LOADS


def growth(held: int) -> tuple[int, ...]:
    """How many connections are open at each point of the curve."""
    return tuple(sorted({max(1, round(held * share)) for share in _STEPS}))


def rate(throughputs: Sequence[float], share: float) -> float:
    """Requests a second that even the slowest can serve, the same for everybody.

    Who served nothing at all has no say, or nobody would be measured.
    """
    slowest = min((one for one in throughputs if one > 0), default=0.0)
    return float(round(min(MOST_A_SECOND, max(LEAST_A_SECOND, slowest * share))))


def is_load(kind: Kind) -> bool:
    return kind in LOADS


def load_of(kind: Kind) -> LoadKind | None:
    return kind if kind in ("keepalive", "connect", "rate") else None


def fault_of(kind: Kind) -> FaultKind | None:
    return kind if kind in ("kill", "roll", "block") else None
