"""What the figures say: the best of each row, and a paragraph for each subject.

Every sentence about a subject is made from its own figures and those of the others in the
same run; what a scheme is supposed to be good at is not known here. Three rules keep it
honest: values whose spreads overlap are level, a subject that the load generator held back
can lose to nobody, and one that failed requests can win nothing by being quick.

No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Final, NamedTuple

from penstock_supervisor.compare.report.figures import (
    Cell,
    Figure,
    alike,
    failed_share,
    figures,
    roles,
)
from penstock_supervisor.compare.report.result import Comparison, FaultKind, LoadKind, Subject
from penstock_supervisor.compare.report.units import share, shown, times

Names = Sequence[str]


class FigureRow(NamedTuple):
    """One figure of all subjects."""

    figure: Figure
    cells: tuple[Cell | None, ...]
    """In the order of the subjects; None: not measured."""
    best: frozenset[int]
    """Who is best, or level with the best; nobody when all are level."""


class _Merit(NamedTuple):
    """A figure that one can choose by."""

    what: str
    """After "best in" and "behind in"."""
    reason: str
    """After "Choose it"."""


# In the order in which they matter to most people.
_MERITS: Final = {
    "keepalive.requests_per_s": _Merit(
        "requests/s over keep-alive connections", "when clients keep their connections open"
    ),
    "connect.requests_per_s": _Merit(
        "requests/s with a connection for each", "when most connections carry one request"
    ),
    "rate.p99": _Merit("p99 latency at a constant rate", "when the slowest 1 % of answers count"),
    "keepalive.cpu": _Merit("CPU per keep-alive request", "when processors are short"),
    "connect.cpu": _Merit("CPU per connection", "when connections are short and processors too"),
    "held.fds": _Merit("descriptors per connection", "when descriptors run out first"),
    "held.memory": _Merit("memory per connection", "when many connections are open and idle"),
    "split.jain": _Merit("evenness of the split", "when all workers have to share evenly"),
    "kill.failed": _Merit("failed requests when a worker dies", "when workers may die"),
    "roll.failed": _Merit("failed requests while workers are replaced", "when releases are many"),
    "block.worst": _Merit("worst latency beside a blocked worker", "when requests may block"),
}
ADVICE: Final = ("Choose", "Nothing here speaks for it")
"""How the sentence begins that says when to choose it."""

_REASONS: Final = 3
"""More reasons than these are none."""
_MUCH: Final = 1.3
"""So many times worse than the best is a reason not to choose it."""
_UNEVEN: Final = 0.05
"""The same for Jain's ratio, as a difference."""
_FEW: Final = 0.6
"""Share of all subjects that may be level with it, and it is still a reason."""


def rows(comparison: Comparison) -> tuple[FigureRow, ...]:
    """Every figure that was measured, with its best."""
    found = []
    for figure in figures(comparison):
        cells = tuple(figure.read(subject) for subject in comparison.subjects)
        found.append(FigureRow(figure, cells, frozenset() if figure.role else best(figure, cells)))
    return tuple(found)


def best(figure: Figure, cells: Sequence[Cell | None]) -> frozenset[int]:
    """Who cannot be told from the best; nobody when that is everybody."""
    sound = {at: cell for at, cell in enumerate(cells) if cell and cell.doubt != "errors"}
    if len(sound) < 2:
        return frozenset()
    top = (max if figure.more else min)(sound.values(), key=lambda cell: cell.value)
    level = {
        at for at, cell in sound.items() if cell.doubt == "limited" or alike(figure, top, cell)
    }
    return frozenset(level) if len(level) < len(sound) else frozenset()


def paragraphs(comparison: Comparison) -> dict[str, str]:
    """For each subject: what it wins, what it costs, when to choose it; in figures."""
    found = rows(comparison)
    names = [subject.name for subject in comparison.subjects]
    return {
        subject.name: " ".join(_sentences(comparison, subject, at, found, names))
        for at, subject in enumerate(comparison.subjects)
    }


def _sentences(
    comparison: Comparison, subject: Subject, at: int, found: Sequence[FigureRow], names: Names
) -> Iterator[str]:
    merits = {row.figure.key: row for row in found if row.figure.key in _MERITS}
    if not any(row.cells[at] for row in merits.values()):
        yield "Nothing was measured."
        yield from _noted(subject)
        return
    told = {key: text for key, row in merits.items() if (text := _place(row, at, names))}
    yield from _choose(merits, at, subject, names)
    yield from _speed(merits, told, at)
    yield from _cpu(merits, told, subject, at)
    yield from _held(subject, told)
    yield from _split(subject)
    yield from _faults(subject)
    yield from _doubts(comparison, subject, merits, at)


def _place(row: FigureRow, at: int, names: Names) -> str:
    """Where its figure stands among the others, in brackets; "" when all are alike."""
    cell = row.cells[at]
    if cell is None or not row.best:
        return ""
    if row.best == {at}:
        return f" (the best; next {_second(row, at, names)})"
    if at in row.best:
        return " (level with the best)"
    first = _first(row, row.best)
    top = row.cells[first]
    assert top
    low, high = sorted((cell.value, top.value))
    if low > 0 and isfinite(high) and row.figure.quantity != "ratio":
        if row.figure.more:
            return f" ({share(low / high)} of {names[first]})"
        if high / low < 1.15:
            return f" ({share(high / low - 1)} more than {names[first]})"
        return f" ({times(high / low)} {names[first]})"
    return f" ({names[first]} {shown(row.figure.quantity, top.value)})"


def _second(row: FigureRow, at: int, names: Names) -> str:
    second = _first(row, {n for n, cell in enumerate(row.cells) if cell and n != at})
    return f"{names[second]} {_value(row, second)}"


def _first(row: FigureRow, among: Collection[int]) -> int:
    """The best value among these."""
    values = {n: cell.value for n in among if (cell := row.cells[n])}
    return (max if row.figure.more else min)(values, key=lambda n: values[n])


def _value(row: FigureRow, at: int) -> str:
    cell = row.cells[at]
    assert cell
    least = "at least " if cell.doubt == "limited" and row.figure.more else ""
    return f"{least}{shown(row.figure.quantity, cell.value)}"


def _speed(merits: Mapping[str, FigureRow], told: Mapping[str, str], at: int) -> Iterator[str]:
    words = {
        "keepalive.requests_per_s": "{} requests/s over keep-alive connections",
        "connect.requests_per_s": "{} with a connection for each",
        "rate.p99": "at a constant rate 99 % of the answers within {}",
    }
    parts = [
        words[key].format(_value(merits[key], at)) + told.get(key, "")
        for key in words
        if key in merits and merits[key].cells[at]
    ]
    if parts:
        yield f"{_capital(_listed(parts))}."


def _cpu(
    merits: Mapping[str, FigureRow], told: Mapping[str, str], subject: Subject, at: int
) -> Iterator[str]:
    words: dict[LoadKind, str] = {
        "keepalive": "for a keep-alive request",
        "connect": "for one with its own connection",
    }
    parts = []
    for kind, what in words.items():
        row = merits.get(f"{kind}.cpu")
        if row is None or not row.cells[at]:
            continue
        proxy = subject.loads[kind].cpu_us.get("proxy")
        inside = (
            f", {shown('cpu', proxy.median)} of it in the proxy" if proxy and proxy.values else ""
        )
        parts.append(f"{_value(row, at)} {what}{told.get(row.figure.key, '')}{inside}")
    if parts:
        yield f"It costs CPU: {'; '.join(parts)}."


def _held(subject: Subject, told: Mapping[str, str]) -> Iterator[str]:
    held = subject.held
    if not held or not held.fds:
        return
    text = f"An open connection takes {_count(sum(held.fds.values()), 'descriptor')}"
    text += told.get("held.fds", "")
    parts = [role for role in roles(list(held.fds)) if held.fds[role] >= 0.05]
    if len(parts) > 1:
        text += f", {_listed([f'{held.fds[role]:.3g} in the {role}' for role in parts])}"
    ports = held.ephemeral_ports
    text += f", {_count(ports, 'local port')}" if ports >= 0.05 else ", no local port"
    if held.memory:
        text += f" and {shown('memory', sum(held.memory.values()))} of memory"
        text += told.get("held.memory", "")
    yield f"{text}."


def _split(subject: Subject) -> Iterator[str]:
    counts = list(subject.split.values())
    total = sum(counts)
    if len(counts) < 2 or not total:
        return
    what = subject.split_of
    most, least = max(counts) / total, min(counts) / total
    jain = "" if subject.jain is None else f" (Jain {subject.jain:.3f})"
    if most - least < 0.02:
        yield f"Each of {len(counts)} workers had {share(1 / len(counts))} of the {what}{jain}."
    else:
        yield (
            f"The busiest of {len(counts)} workers had {share(most)} of the {what}, "
            f"the least busy {share(least)}{jain}."
        )


def _faults(subject: Subject) -> Iterator[str]:
    words: dict[FaultKind, str] = {
        "kill": "when a worker was killed",
        "roll": "while all workers were replaced",
        "block": "beside a worker that was blocked for a second",
    }
    parts = []
    for kind, when in words.items():
        fault = subject.faults.get(kind)
        if fault is None:
            continue
        failed = f"{fault.failed:,} of {fault.requests:,}" if fault.failed else "none"
        text = f"{failed} {when} (worst answer {shown('time', fault.worst_s)}"
        if fault.full_capacity_s is None:
            text += ", full capacity never back"
        elif kind == "kill":
            text += f", full capacity back after {shown('time', fault.full_capacity_s)}"
        parts.append(f"{text})")
    if parts:
        yield f"Failed requests: {_listed(parts)}."


def _choose(
    merits: Mapping[str, FigureRow], at: int, subject: Subject, names: Names
) -> Iterator[str]:
    if not subject.scheme or not any(row.best for row in merits.values()):
        return
    won = sorted(_reasons_for(merits, at, len(names)), key=lambda row: len(row.best))
    together = {row.best: "" for row in won[:_REASONS]}
    for level in together:
        who = _listed(["it", *(names[n] for n in sorted(level - {at}))], "or")
        reasons = [_MERITS[row.figure.key].reason for row in won[:_REASONS] if row.best == level]
        together[level] = f"{who} {_listed(reasons, 'or')}"
    text = f"{ADVICE[0]} {'; '.join(together.values())}" if won else ADVICE[1]
    lost = [row for row in merits.values() if _lags(row, at)]
    lost.sort(key=lambda row: -_lags(row, at))
    if lost:
        reasons = [_MERITS[row.figure.key].reason for row in lost[:_REASONS]]
        text += f"; rather not {_listed(reasons, 'or')}"
    yield f"{text}."


def _reasons_for(merits: Mapping[str, FigureRow], at: int, many: int) -> Iterator[FigureRow]:
    for row in merits.values():
        # What most others do as well is no reason to choose this one.
        rare = len(row.best) <= max(1.0, _FEW * many)
        if at in row.best and rare and any(_lags(row, other) for other in range(many)):
            yield row


def _lags(row: FigureRow, at: int) -> float:
    """How many times worse than the best it is; 0 when nobody should choose by it."""
    cell = row.cells[at]
    if cell is None or not row.best or at in row.best:
        return 0.0
    top = row.cells[_first(row, row.best)]
    assert top
    low, high = sorted((cell.value, top.value))
    if row.figure.quantity == "ratio":
        return high / low if low and high - low >= _UNEVEN else 0.0
    ratio = high / low if low > 0 else inf
    return ratio if ratio >= _MUCH else 0.0


def _doubts(
    comparison: Comparison, subject: Subject, merits: Mapping[str, FigureRow], at: int
) -> Iterator[str]:
    words = {
        "keepalive": "keep-alive",
        "connect": "connection-per-request",
        "rate": "constant-rate",
    }
    limited = [words[kind] for kind, load in subject.loads.items() if load.limited]
    if limited:
        yield (
            f"Under {_listed(limited)} load the load generator was the limit: "
            "what it could do beyond is not known."
        )
    for kind, load in subject.loads.items():
        if sum(load.errors.values()):
            kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(load.errors.items()))
            part = share(failed_share(load))
            yield f"Under {words[kind]} load {part} of the requests failed ({kinds})."
    if behind_rate := _behind_rate(subject):
        yield behind_rate
    wanted = _MERITS if comparison.interrupted else merits
    missing = [
        _MERITS[key].what for key in wanted if key not in merits or merits[key].cells[at] is None
    ]
    if missing and subject.scheme:
        yield f"Not measured: {_listed(missing)}."
    yield from _noted(subject)


def _noted(subject: Subject) -> Iterator[str]:
    for note in subject.notes:
        yield _capital(note if note.endswith(".") else f"{note}.")


def _behind_rate(subject: Subject) -> str:
    load = subject.loads.get("rate")
    if not load or not load.rate or not load.requests_per_s.values:
        return ""
    reached = load.requests_per_s.median / load.rate
    if reached >= 0.97:
        return ""
    return f"It reached only {share(reached)} of the constant rate, so latencies grew with time."


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _count(value: float, what: str) -> str:
    text = shown("number", round(value, 2))
    return f"{text} {what}{'' if text == '1' else 's'}"


def _listed(parts: Sequence[str], word: str = "and") -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}"
