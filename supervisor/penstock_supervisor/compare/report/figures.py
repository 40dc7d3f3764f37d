"""The list of all figures of a comparison: how each is read, which way is better, what matters.

A *figure* is one kind of result, such as `keepalive.p99`: one row of the table. Table, page,
paragraphs and baseline all use this one list, so they cannot disagree about what was measured.
A figure that was not measured for a subject is None and never zero, because zero is a result.
No I/O, no clock.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Final, Literal, NamedTuple

from penstock_supervisor.compare.report.intervals import (
    Interval,
    Verdict,
    independent_ratio,
    ratio,
    verdict,
)
from penstock_supervisor.compare.report.measurements import sum_of_roles
from penstock_supervisor.compare.report.result import (
    FAULTS,
    LOADS,
    Comparison,
    FaultKind,
    LoadKind,
    LoadResult,
    Noise,
    Spread,
    Subject,
)
from penstock_supervisor.compare.report.units import Quantity, format_value

ROLES: Final = ("proxy", "workers", "supervisor", "server")

_MARGIN: Final = 0.05
"""Differences up to this share are too small to choose by, however well they were measured."""
_ONCE: Final = 0.3
"""The margin of what was measured once and varies from run to run."""
_UNEVEN: Final = 0.05
"""Of Jain's index: one of two workers has 1.6 times as much as the other."""
_LEAST_S: Final = 50e-6
_LEAST_FAULT_S: Final = 0.2
_MAX_FAILED_SHARE: Final = 0.01
"""With more failed requests a figure is no merit: a server that rejects requests is quick."""

NEVER: Final = inf
"""Not within the given time."""

Doubt = Literal["", "limited", "errors"]


class Cell(NamedTuple):
    """One figure of one subject."""

    value: float
    low: float
    high: float
    rounds: int = 0
    """0: measured once, and exact, as descriptors are."""
    doubt: Doubt = ""
    """limited: the load generator was the limit. errors: too many requests failed."""
    values: tuple[float, ...] = ()
    """One for each round; empty if it was measured once."""

    @property
    def spread(self) -> float:
        """Half of the whole spread, as a share of the value."""
        if not self.value or not isfinite(self.value):
            return 0.0
        return (self.high - self.low) / 2 / abs(self.value)


ReadCell = Callable[[Subject], Cell | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One kind of result: a row of the table."""

    key: str
    """`keepalive.p99`; unique."""
    section: str
    label: str
    quantity: Quantity
    more_is_better: bool = False
    margin: float = _MARGIN
    """Values that differ by no more than this share are level."""
    least: float = 0.0
    """The same as a difference: nobody chooses by a millisecond."""
    counted: bool = False
    """A number of chance events, which varies from run to run as its square root does."""
    role: str = ""
    """This role's part of the figure above. Parts have no best."""
    read: ReadCell


def sections(comparison: Comparison) -> dict[str, str]:
    """The sections of the table and their titles, in order."""
    rates = [one.loads["rate"].rate for one in comparison.subjects if "rate" in one.loads]
    rate = f", {format_value('rate', rates[0])} requests/s" if rates else ""
    held = [one.held.connections for one in comparison.subjects if one.held]
    count = f"{held[0]:,} " if held else ""
    return {
        "keepalive": "Keep-alive connections",
        "connect": "A connection per request",
        "rate": f"Constant rate{rate}",
        "held": f"{count}{'open' if held else 'Open'}, idle connections",
        "scaling": "Keep-alive connections, by number of workers",
        "split": "Split across workers",
        "kill": "Fault: a worker killed",
        "roll": "Fault: all workers replaced, one after the other",
        "block": "Fault: a worker blocked for a second",
    }


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """All figures that at least one subject has, in the order of the table."""
    candidates: list[Figure] = []
    for load in LOADS:
        candidates += _load(load, comparison.subjects)
    candidates += _held(comparison.subjects)
    candidates += _scaling(comparison)
    candidates.append(
        Figure(key="split.jain", section="split", label="Jain's fairness", quantity="ratio",
               more_is_better=True, margin=0.0, least=_UNEVEN, read=_jain)
    )  # fmt: skip
    for fault in FAULTS:
        candidates += _fault(fault)
    return tuple(figure for figure in candidates if _has_values(figure, comparison.subjects))


def _has_values(figure: Figure, subjects: Sequence[Subject]) -> bool:
    """Was it measured? Errors and parts are left out as well if all of them are zero."""
    cells = [cell for subject in subjects if (cell := figure.read(subject))]
    hidden_if_zero = figure.key.endswith(".errors") or bool(figure.role)
    return any(cell.value for cell in cells) if hidden_if_zero else bool(cells)


def roles(names: Sequence[str]) -> list[str]:
    """Each of these roles once, in the order in which they are shown."""
    known = [role for role in ROLES if role in names]
    return known + sorted(set(names) - set(ROLES))


def failed_share(load: LoadResult) -> float:
    failed = sum(load.errors.values())
    return failed / max(1, load.requests + failed)


def _load(kind: LoadKind, subjects: Sequence[Subject]) -> Iterator[Figure]:
    # A constant rate is reached or not, so its throughput is no merit.
    if kind != "rate":
        yield Figure(key=f"{kind}.requests_per_s", section=kind, label="requests/s",
                     quantity="rate", more_is_better=True,
                     read=_of_load(kind, lambda load: load.requests_per_s))  # fmt: skip
    percentiles: dict[str, tuple[Callable[[LoadResult], Spread | None], float]] = {
        "p50": (lambda load: load.p50_s, 0.1),
        "p90": (lambda load: load.p90_s, 0.15),
        # The slowest of a round are few requests.
        "p99": (lambda load: load.p99_s, 0.3),
        "p99.9": (lambda load: load.p999_s, 0.5),
    }
    for label, (get, margin) in percentiles.items():
        yield Figure(key=f"{kind}.{label}", section=kind, label=label, quantity="time",
                     margin=margin, least=_LEAST_S, read=_of_load(kind, get))  # fmt: skip
    yield Figure(key=f"{kind}.cpu", section=kind, label="CPU/request", quantity="cpu",
                 read=_of_load(kind, lambda load: sum_of_roles(load.cpu_us)))  # fmt: skip
    loads = [one.loads[kind] for one in subjects if kind in one.loads]
    for role in roles([role for load in loads for role in load.cpu_us]):
        yield Figure(key=f"{kind}.cpu.{role}", section=kind, label=f"  {role}", quantity="cpu",
                     role=role, read=_of_load(kind, _cpu_of(role)))  # fmt: skip
    yield Figure(key=f"{kind}.kernel", section=kind, label="  in the kernel", quantity="cpu",
                 role="kernel", read=_of_load(kind, lambda load: load.kernel_us))  # fmt: skip
    yield Figure(key=f"{kind}.errors", section=kind, label="failed", quantity="number",
                 counted=True, read=_errors(kind))  # fmt: skip


def _cpu_of(role: str) -> Callable[[LoadResult], Spread | None]:
    return lambda load: load.cpu_us.get(role)


def _of_load(kind: LoadKind, get: Callable[[LoadResult], Spread | None]) -> ReadCell:
    def read(subject: Subject) -> Cell | None:
        load = subject.loads.get(kind)
        spread = get(load) if load else None
        if load is None or spread is None or not spread.values:
            return None
        doubt: Doubt = "limited" if load.limited else ""
        if failed_share(load) >= _MAX_FAILED_SHARE:
            doubt = "errors"
        count = len(spread.values)
        return Cell(spread.median, spread.low, spread.high, count, doubt, spread.values)

    return read


def _errors(kind: LoadKind) -> ReadCell:
    def read(subject: Subject) -> Cell | None:
        load = subject.loads.get(kind)
        return _exact(sum(load.errors.values())) if load else None

    return read


def _held(subjects: Sequence[Subject]) -> Iterator[Figure]:
    held = [one.held for one in subjects if one.held]
    yield Figure(key="held.fds", section="held", label="descriptors each", quantity="number",
                 read=lambda subject: _sum(subject.held.fds if subject.held else {}))  # fmt: skip
    for role in roles([role for one in held for role in one.fds]):
        yield Figure(key=f"held.fds.{role}", section="held", label=f"  {role}", role=role,
                     quantity="number", read=_fds_of(role))  # fmt: skip
    yield Figure(key="held.memory", section="held", label="memory each", quantity="memory",
                 margin=_ONCE,
                 read=lambda one: _sum(one.held.memory if one.held else {}))  # fmt: skip
    for role in roles([role for one in held for role in one.memory]):
        yield Figure(key=f"held.memory.{role}", section="held", label=f"  {role}", role=role,
                     quantity="memory", read=_memory_of(role))  # fmt: skip
    yield Figure(key="held.ports", section="held", label="local ports each", quantity="number",
                 read=_ports)  # fmt: skip


def worker_counts(comparison: Comparison) -> tuple[int, ...]:
    """The numbers of workers that were measured, the one of all other figures included."""
    counts = {workers for one in comparison.subjects for workers in one.scaling}
    return tuple(sorted(counts | {comparison.workers})) if counts else ()


def throughput_with(subject: Subject, workers: int, comparison: Comparison) -> Cell | None:
    """Requests a second over keep-alive connections with so many workers."""
    if workers == comparison.workers:
        return _of_load("keepalive", lambda load: load.requests_per_s)(subject)
    found = subject.scaling.get(workers)
    if found is None or not found.requests_per_s.values:
        return None
    spread = found.requests_per_s
    doubt: Doubt = "limited" if found.limited else ""
    return Cell(spread.median, spread.low, spread.high, len(spread.values), doubt, spread.values)


def _scaling(comparison: Comparison) -> Iterator[Figure]:
    for workers in worker_counts(comparison):
        label = f"requests/s, {workers} worker{'s' * (workers > 1)}"
        yield Figure(key=f"scaling.{workers}", section="scaling", label=label, quantity="rate",
                     more_is_better=True, read=_with(workers, comparison))  # fmt: skip


def _with(workers: int, comparison: Comparison) -> ReadCell:
    return lambda subject: throughput_with(subject, workers, comparison)


def _ports(subject: Subject) -> Cell | None:
    return _exact(subject.held.ephemeral_ports) if subject.held else None


def _fds_of(role: str) -> ReadCell:
    return lambda one: _part(one.held.fds if one.held else {}, role)


def _memory_of(role: str) -> ReadCell:
    return lambda one: _part(one.held.memory if one.held else {}, role)


def _part(parts: dict[str, float], role: str) -> Cell | None:
    return _exact(parts[role]) if role in parts else None


def _sum(parts: dict[str, float]) -> Cell | None:
    return _exact(sum(parts.values())) if parts else None


def _jain(subject: Subject) -> Cell | None:
    return None if subject.jain is None else _exact(subject.jain)


def _fault(kind: FaultKind) -> Iterator[Figure]:
    yield Figure(key=f"{kind}.failed", section=kind, label="requests failed",
                 quantity="number", counted=True, read=_failed(kind))  # fmt: skip
    yield Figure(key=f"{kind}.capacity", section=kind, label="capacity back",
                 quantity="time", margin=_ONCE, least=_LEAST_FAULT_S,
                 read=_capacity(kind))  # fmt: skip
    yield Figure(key=f"{kind}.worst", section=kind, label="worst latency",
                 quantity="time", margin=_ONCE, least=_LEAST_FAULT_S,
                 read=_worst(kind))  # fmt: skip


def _failed(kind: FaultKind) -> ReadCell:
    return lambda one: _exact(one.faults[kind].failed) if kind in one.faults else None


def _capacity(kind: FaultKind) -> ReadCell:
    def read(subject: Subject) -> Cell | None:
        if kind not in subject.faults:
            return None
        full_capacity_s = subject.faults[kind].full_capacity_s
        value = NEVER if full_capacity_s is None else full_capacity_s
        return Cell(value, value, value, 1)

    return read


def _worst(kind: FaultKind) -> ReadCell:
    def read(subject: Subject) -> Cell | None:
        if kind not in subject.faults:
            return None
        worst = subject.faults[kind].worst_s
        return Cell(worst, worst, worst, 1)

    return read


def _exact(value: float) -> Cell:
    return Cell(value, value, value)


def judge(
    figure: Figure, one: Cell, other: Cell, noise: Noise | None = None, *, paired: bool = True
) -> Verdict:
    """Is `one` better than `other`, worse, or level with it?

    `noise` is that of the machine; not `paired`: the two are of different runs.
    """
    if abs(one.value - other.value) <= figure.least or one.value == other.value:
        return "level"
    if figure.counted:
        # The difference of two counts has the variance of their sum; three deviations.
        apart = abs(one.value - other.value) > 3 * sqrt(one.value + other.value) + 1
        interval = Interval(0.0, 0.0) if one.value < other.value else Interval(inf, inf)
        if not apart:
            return "level"
    else:
        interval = interval_of(one, other, paired=paired)
    margin = margin_in(figure, noise) if one.values else figure.margin
    found, shown = (
        verdict(each, more_is_better=figure.more_is_better, margin=margin)
        for each in (interval, _between(one, other))
    )
    # A ratio round by round may say what the two medians that a reader sees do not.
    return found if found == shown else "level"


def margin_in(figure: Figure, noise: Noise | None) -> float:
    """What a difference between rounds has to exceed on this machine, as a share."""
    if noise is None:
        return figure.margin
    # What others take makes everybody slower, but costs hardly any CPU time.
    return max(figure.margin, noise.varies if figure.quantity == "cpu" else noise.share)


def interval_of(one: Cell, other: Cell, *, paired: bool = True) -> Interval:
    """Of the ratio of the two."""
    if one.values and other.values:
        return (ratio if paired else independent_ratio)(one.values, other.values)
    return _between(one, other)


def _between(one: Cell, other: Cell) -> Interval:
    """The ratio of what is shown of the two."""
    mine, theirs = (cell.value or _NOTHING for cell in (one, other))
    found = mine / theirs if isfinite(mine) or isfinite(theirs) else 1.0
    return Interval(found, found)


_NOTHING: Final = 1e-9
"""In place of zero, which has no ratio to anything."""
