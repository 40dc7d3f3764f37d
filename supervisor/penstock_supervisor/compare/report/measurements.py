"""Collects the measurements of one subject, and makes them a column of the result.

Rounds are added as they end, so a comparison that is ended early has all that it measured. What
was not measured stays empty: nothing is estimated. No I/O, no clock.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.result import (
    FaultKind,
    FaultResult,
    HeldResult,
    LoadKind,
    LoadResult,
    ScalingResult,
    Spread,
    Subject,
)


class Round(NamedTuple):
    """One load on one subject, once."""

    requests: int
    errors: Mapping[str, int]
    seconds: float
    histogram: Mapping[int, int]
    worst_s: float
    limited: bool
    cpu_s: Mapping[str, float]
    """CPU time by role."""
    rate: float = 0.0
    kernel_s: float = 0.0
    """The part of all roles' CPU time that was spent in the kernel."""
    generator: str = "own"
    late: int = 0
    """Requests that were answered after the time was up."""

    @property
    def requests_per_s(self) -> float:
        return (self.requests - self.late) / self.seconds if self.seconds else 0.0


class Measurements:
    """All measurements of one subject so far."""

    def __init__(self, name: str, scheme: str = "", mode: str = "", setup: str = "") -> None:
        """`setup`: what a peer was run as, for readers."""
        self.name = name
        self._setup = setup
        self._scheme = scheme
        self._mode = mode
        self._rounds: dict[LoadKind, list[Round]] = {}
        self._split: Counter[str] = Counter()
        self._split_of = "connections"
        self._notes: dict[str, None] = {}
        self.faults: dict[FaultKind, FaultResult] = {}
        self.held: HeldResult | None = None
        self._scaling: dict[int, list[Round]] = {}

    def add_scaling_round(self, workers: int, measured: Round) -> None:
        self._scaling.setdefault(workers, []).append(measured)

    def add_round(self, kind: LoadKind, measured: Round) -> None:
        self._rounds.setdefault(kind, []).append(measured)

    def add_split(self, counted: str, split: Mapping[str, int]) -> None:
        """Add the requests or connections (`counted`) that each worker had under a load."""
        self._split_of = counted
        self._split.update(split)

    def note(self, text: str) -> None:
        """Add a note. The same text is added once."""
        self._notes[text] = None

    def throughput(self, kind: LoadKind) -> float:
        """Requests a second in the best round so far; 0 before the first."""
        return max((one.requests_per_s for one in self._rounds.get(kind, ())), default=0.0)

    def subject(self) -> Subject:
        return Subject(
            name=self.name,
            scheme=self._scheme,
            mode=self._mode,
            loads={kind: summary(rounds) for kind, rounds in self._rounds.items()},
            held=self.held,
            split=dict(sorted(self._split.items(), key=lambda row: int(row[0]))),
            split_of=self._split_of,
            jain=jain(tuple(self._split.values())),
            faults=dict(self.faults),
            scaling={n: _scaling(rounds) for n, rounds in sorted(self._scaling.items())},
            setup=self._setup,
            notes=tuple(self._notes),
        )


def summary(rounds: list[Round]) -> LoadResult:
    """The result of a load from its rounds: one value for each round, and sums of all."""
    merged: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    for one in rounds:
        merged.update(one.histogram)
        errors.update(one.errors)
    # A round without an answer has no latencies, and no CPU time for an answer.
    answered = [one for one in rounds if one.requests]

    def quantile(share: float) -> Spread:
        values = (histogram.percentile(dict(one.histogram), share) for one in answered)
        return Spread(values=tuple(values) or (0.0,))

    return LoadResult(
        requests=sum(one.requests for one in rounds),
        errors=dict(errors),
        requests_per_s=Spread(values=tuple(one.requests_per_s for one in rounds)),
        p50_s=quantile(0.5),
        p90_s=quantile(0.9),
        p99_s=quantile(0.99),
        p999_s=quantile(0.999),
        worst_s=max(one.worst_s for one in rounds),
        histogram=dict(merged),
        cpu_us=_cpu_per_request(answered),
        kernel_us=Spread(
            values=tuple(one.kernel_s / one.requests * 1e6 for one in answered if one.cpu_s)
        ),
        limited=any(one.limited for one in rounds),
        rate=rounds[-1].rate,
        generator=rounds[-1].generator,
    )


def _scaling(rounds: list[Round]) -> ScalingResult:
    load = summary(rounds)
    return ScalingResult(
        requests_per_s=load.requests_per_s,
        cpu_us=sum_of_roles(load.cpu_us) or Spread(values=()),
        limited=load.limited,
    )


def sum_of_roles(parts: Mapping[str, Spread]) -> Spread | None:
    """For each round, the sum of all roles."""
    rounds = list(zip(*(part.values for part in parts.values()), strict=False))
    return Spread(values=tuple(map(sum, rounds))) if rounds else None


def _cpu_per_request(rounds: list[Round]) -> dict[str, Spread]:
    roles = dict.fromkeys(role for one in rounds for role in one.cpu_s)
    return {
        role: Spread(
            values=tuple(
                one.cpu_s[role] / one.requests * 1e6 for one in rounds if role in one.cpu_s
            )
        )
        for role in roles
    }


def jain(shares: tuple[int, ...]) -> float | None:
    """(Σx)² / (n · Σx²): 1 if all are equal, 1/n if one has all. None: all are 0."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


class ResourceSample(NamedTuple):
    """Descriptors, memory and ports of a subject, at one number of open connections."""

    connections: int
    fds: Mapping[str, int]
    """By role."""
    memory: Mapping[str, int]
    """Bytes by role."""
    outgoing_connections: int


def held_connections(samples: list[ResourceSample]) -> HeldResult | None:
    """What an idle connection costs: the difference of the last sample to the first."""
    first, last = samples[0], samples[-1]
    added = last.connections - first.connections
    if added <= 0:
        return None

    def per_connection(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
        # What an earlier load left over may be freed meanwhile: that is no negative cost.
        return {role: max(0.0, (after[role] - before.get(role, 0)) / added) for role in after}

    ports = last.outgoing_connections - first.outgoing_connections
    return HeldResult(
        connections=last.connections,
        fds=per_connection(first.fds, last.fds),
        memory=per_connection(first.memory, last.memory),
        ephemeral_ports=max(0.0, ports / added),
        curve=tuple((sample.connections, dict(sample.fds)) for sample in samples),
    )
