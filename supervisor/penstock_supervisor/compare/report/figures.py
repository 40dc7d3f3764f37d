"""Every figure of a comparison by name: where it is found, and which way is better.

The table, the page, the verdicts and the baseline all go by this one list, so they cannot
disagree about what was measured. A figure that a subject has not is None and never zero:
"not measured" and "nothing" are different findings. No I/O, no clock.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Final, Literal, NamedTuple

from penstock_supervisor.compare.report.result import (
    FAULTS,
    LOADS,
    Comparison,
    FaultKind,
    LoadKind,
    LoadResult,
    Spread,
    Subject,
)
from penstock_supervisor.compare.report.units import Quantity, shown

ROLES: Final = ("proxy", "workers", "supervisor", "server")

SINGLE: Final = 0.1
"""Two values of one round each are alike within this: nobody knows how far they spread."""
_CLOSE: Final = 0.03
"""Nobody should choose by less than this, however narrow the spread."""
_ERRORS: Final = 0.01
"""Share of failed requests from which a figure no longer speaks for a subject: a server
that refuses is quick."""

NEVER: Final = inf
"""Not within the time that was given."""

Doubt = Literal["", "limited", "errors"]


class Cell(NamedTuple):
    """One figure of one subject."""

    value: float
    low: float
    high: float
    rounds: int = 0
    """0: measured once and exact, as descriptors are."""
    doubt: Doubt = ""
    """limited: the load generator was the limit; errors: too many requests failed."""

    @property
    def spread(self) -> float:
        """Half of the whole spread, as a share of the value."""
        if not self.value or not isfinite(self.value):
            return 0.0
        return (self.high - self.low) / 2 / abs(self.value)


Read = Callable[[Subject], Cell | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row."""

    key: str
    """`keepalive.p99`; unique."""
    section: str
    label: str
    quantity: Quantity
    more: bool = False
    """More is better."""
    close: float = _CLOSE
    """Values that are nearer than this share are alike."""
    role: str = ""
    """A part of the figure above, of this role; nobody wins a part."""
    read: Read


def sections(comparison: Comparison) -> dict[str, str]:
    """The parts of the table and their titles, in order."""
    rates = [one.loads["rate"].rate for one in comparison.subjects if "rate" in one.loads]
    asked = f", {shown('rate', rates[0])} requests/s" if rates else ""
    held = [one.held.connections for one in comparison.subjects if one.held]
    many = f"{held[0]:,} " if held else ""
    return {
        "keepalive": "Keep-alive connections",
        "connect": "A connection per request",
        "rate": f"Constant rate{asked}",
        "held": f"{many}{'open' if held else 'Open'}, idle connections",
        "split": "Split across workers",
        "kill": "Fault: a worker killed",
        "roll": "Fault: all workers replaced, one after the other",
        "block": "Fault: a worker blocked for a second",
    }


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """All that at least one subject has, in the order of the table."""
    found: list[Figure] = []
    for load in LOADS:
        found += _load(load, comparison.subjects)
    found += _held(comparison.subjects)
    found.append(
        Figure(key="split.jain", section="split", label="Jain's fairness", quantity="ratio",
               more=True, close=0.01, read=_jain)
    )  # fmt: skip
    for fault in FAULTS:
        found += _fault(fault)
    return tuple(one for one in found if _is_told(one, comparison.subjects))


def _is_told(figure: Figure, subjects: Sequence[Subject]) -> bool:
    """Was it measured at all? Errors that nobody had are no figure."""
    cells = [cell for subject in subjects if (cell := figure.read(subject))]
    silent = figure.key.endswith(".errors") or bool(figure.role)
    return any(cell.value for cell in cells) if silent else bool(cells)


def roles(parts: Sequence[str]) -> list[str]:
    """In the order in which they are shown."""
    known = [role for role in ROLES if role in parts]
    return known + sorted(set(parts) - set(ROLES))


def failed_share(load: LoadResult) -> float:
    failed = sum(load.errors.values())
    return failed / max(1, load.requests + failed)


def of_all_roles(parts: dict[str, Spread]) -> Spread | None:
    """The sum of each round."""
    rounds = list(zip(*(part.values for part in parts.values()), strict=False))
    return Spread(values=tuple(sum(one) for one in rounds)) if rounds else None


def _load(kind: LoadKind, subjects: Sequence[Subject]) -> Iterator[Figure]:
    # A constant rate is reached or not; to have more of it is no merit.
    if kind != "rate":
        yield Figure(key=f"{kind}.requests_per_s", section=kind, label="requests/s",
                     quantity="rate", more=True,
                     read=_of_load(kind, lambda load: load.requests_per_s))  # fmt: skip
    percentiles: dict[str, Callable[[LoadResult], Spread | None]] = {
        "p50": lambda load: load.p50_s,
        "p90": lambda load: load.p90_s,
        "p99": lambda load: load.p99_s,
        "p99.9": lambda load: load.p999_s,
    }
    for label, get in percentiles.items():
        yield Figure(key=f"{kind}.{label}", section=kind, label=label, quantity="time",
                     close=0.05, read=_of_load(kind, get))  # fmt: skip
    yield Figure(key=f"{kind}.cpu", section=kind, label="CPU/request", quantity="cpu",
                 read=_of_load(kind, lambda load: of_all_roles(load.cpu_us)))  # fmt: skip
    loads = [one.loads[kind] for one in subjects if kind in one.loads]
    for role in roles([role for load in loads for role in load.cpu_us]):
        yield Figure(key=f"{kind}.cpu.{role}", section=kind, label=f"  {role}", quantity="cpu",
                     role=role, read=_of_load(kind, _cpu_of(role)))  # fmt: skip
    yield Figure(key=f"{kind}.errors", section=kind, label="failed", quantity="number",
                 close=0.0, read=_errors(kind))  # fmt: skip


def _cpu_of(role: str) -> Callable[[LoadResult], Spread | None]:
    return lambda load: load.cpu_us.get(role)


def _of_load(kind: LoadKind, get: Callable[[LoadResult], Spread | None]) -> Read:
    def read(subject: Subject) -> Cell | None:
        load = subject.loads.get(kind)
        spread = get(load) if load else None
        if load is None or spread is None or not spread.values:
            return None
        doubt: Doubt = "limited" if load.limited else ""
        if failed_share(load) >= _ERRORS:
            doubt = "errors"
        return Cell(spread.median, spread.low, spread.high, len(spread.values), doubt)

    return read


def _errors(kind: LoadKind) -> Read:
    def read(subject: Subject) -> Cell | None:
        load = subject.loads.get(kind)
        return _counted(sum(load.errors.values())) if load else None

    return read


def _held(subjects: Sequence[Subject]) -> Iterator[Figure]:
    held = [one.held for one in subjects if one.held]
    yield Figure(key="held.fds", section="held", label="descriptors each", quantity="number",
                 read=lambda subject: _sum(subject.held.fds if subject.held else {}))  # fmt: skip
    for role in roles([role for one in held for role in one.fds]):
        yield Figure(key=f"held.fds.{role}", section="held", label=f"  {role}", role=role,
                     quantity="number", read=_fds_of(role))  # fmt: skip
    yield Figure(key="held.memory", section="held", label="memory each", quantity="memory",
                 close=0.05,
                 read=lambda one: _sum(one.held.memory if one.held else {}))  # fmt: skip
    for role in roles([role for one in held for role in one.memory]):
        yield Figure(key=f"held.memory.{role}", section="held", label=f"  {role}", role=role,
                     quantity="memory", read=_memory_of(role))  # fmt: skip
    yield Figure(key="held.ports", section="held", label="local ports each", quantity="number",
                 read=_ports)  # fmt: skip


def _ports(subject: Subject) -> Cell | None:
    return _exact(subject.held.ephemeral_ports) if subject.held else None


def _fds_of(role: str) -> Read:
    return lambda one: _part(one.held.fds if one.held else {}, role)


def _memory_of(role: str) -> Read:
    return lambda one: _part(one.held.memory if one.held else {}, role)


def _part(parts: dict[str, float], role: str) -> Cell | None:
    return _exact(parts[role]) if role in parts else None


def _sum(parts: dict[str, float]) -> Cell | None:
    return _exact(sum(parts.values())) if parts else None


def _jain(subject: Subject) -> Cell | None:
    return None if subject.jain is None else _exact(subject.jain)


def _fault(kind: FaultKind) -> Iterator[Figure]:
    yield Figure(key=f"{kind}.failed", section=kind, label="requests failed",
                 quantity="number", close=0.0, read=_failed(kind))  # fmt: skip
    yield Figure(key=f"{kind}.capacity", section=kind, label="capacity back",
                 quantity="time", read=_capacity(kind))  # fmt: skip
    yield Figure(key=f"{kind}.worst", section=kind, label="worst latency",
                 quantity="time", read=_worst(kind))  # fmt: skip


def _failed(kind: FaultKind) -> Read:
    return lambda one: _counted(one.faults[kind].failed) if kind in one.faults else None


def _capacity(kind: FaultKind) -> Read:
    def read(subject: Subject) -> Cell | None:
        if kind not in subject.faults:
            return None
        after = subject.faults[kind].full_capacity_s
        value = NEVER if after is None else after
        return Cell(value, value, value, 1)

    return read


def _worst(kind: FaultKind) -> Read:
    def read(subject: Subject) -> Cell | None:
        if kind not in subject.faults:
            return None
        worst = subject.faults[kind].worst_s
        return Cell(worst, worst, worst, 1)

    return read


def _exact(value: float) -> Cell:
    return Cell(value, value, value)


def _counted(many: int) -> Cell:
    """What happens by chance would be another number next time: two standard deviations."""
    chance = 2 * sqrt(many)
    return Cell(many, max(0.0, many - chance), many + chance)


def alike(figure: Figure, one: Cell, other: Cell) -> bool:
    """Would another run put them in another order?

    Spreads that overlap say so. A value of a single round has no spread, so it has to
    differ by more.
    """
    if one.low <= other.high and other.low <= one.high:
        return True
    if not (isfinite(one.value) and isfinite(other.value)):
        return False
    close = max(figure.close, SINGLE if 1 in (one.rounds, other.rounds) else 0.0)
    return abs(one.value - other.value) <= close * max(abs(one.value), abs(other.value))
