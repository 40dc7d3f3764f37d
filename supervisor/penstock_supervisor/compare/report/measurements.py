"""What was measured so far of one subject, and how it becomes a column of the result.

Rounds are added as they come, so that a run which is ended early has all that it measured.
Whatever is missing stays empty: nothing is estimated. No I/O, no clock.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.result import (
    FaultKind,
    FaultResult,
    Held,
    LoadKind,
    LoadResult,
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
    """Processor time by role."""
    rate: float = 0.0

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class Findings:
    """One subject's."""

    def __init__(self, name: str, scheme: str = "", mode: str = "") -> None:
        self.name = name
        self._scheme = scheme
        self._mode = mode
        self._rounds: dict[LoadKind, list[Round]] = {}
        self._split: Counter[str] = Counter()
        self._split_of = "connections"
        self._notes: dict[str, None] = {}
        self.faults: dict[FaultKind, FaultResult] = {}
        self.held: Held | None = None

    def loaded(self, kind: LoadKind, one: Round) -> None:
        self._rounds.setdefault(kind, []).append(one)

    def shared(self, what: str, split: Mapping[str, int]) -> None:
        """Add what each worker had of a load."""
        self._split_of = what
        self._split.update(split)

    def note(self, text: str) -> None:
        """Said once, however often it happens."""
        self._notes[text] = None

    def throughput(self, kind: LoadKind) -> float:
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
            notes=tuple(self._notes),
        )


def summary(rounds: list[Round]) -> LoadResult:
    """A value a round, and what all of them add up to."""
    merged: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    for one in rounds:
        merged.update(one.histogram)
        errors.update(one.errors)
    # A round without an answer has no latency and no cost of one.
    good = [one for one in rounds if one.requests]

    def quantile(share: float) -> Spread:
        values = (histogram.percentile(dict(one.histogram), share) for one in good)
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
        cpu_us=_cost(good),
        limited=any(one.limited for one in rounds),
        rate=rounds[-1].rate,
    )


def _cost(rounds: list[Round]) -> dict[str, Spread]:
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
    """(Σx)² / (n · Σx²): 1 is even, 1/n is all to one. None: nobody had anything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


class Sample(NamedTuple):
    """All processes of a subject, at one number of connections."""

    connections: int
    fds: Mapping[str, int]
    memory: Mapping[str, int]
    outgoing: int


def held(samples: list[Sample]) -> Held | None:
    """What a connection costs while it is idle: from the first sample to the last."""
    first, last = samples[0], samples[-1]
    more = last.connections - first.connections
    if more <= 0:
        return None

    def each(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
        # What was left over from before can go meanwhile, and is nobody's gain.
        return {role: max(0.0, (after[role] - before.get(role, 0)) / more) for role in after}

    return Held(
        connections=last.connections,
        fds=each(first.fds, last.fds),
        memory=each(first.memory, last.memory),
        ephemeral_ports=max(0.0, (last.outgoing - first.outgoing) / more),
        curve=tuple((one.connections, dict(one.fds)) for one in samples),
    )
