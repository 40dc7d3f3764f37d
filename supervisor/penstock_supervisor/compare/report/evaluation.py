"""Evaluates the figures: the best of each row, and a paragraph for each subject.

Every sentence about a subject is made from its own figures and those of the other subjects in
the same run. Nothing here knows what a scheme is supposed to be good at. There are three rules.
Values are alike if their spreads overlap. A subject for which the load generator was the limit
is never worse than another. A subject that failed requests is never the best.

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
from penstock_supervisor.compare.report.units import format_share, format_times, format_value

Names = Sequence[str]


class FigureRow(NamedTuple):
    """One figure of all subjects."""

    figure: Figure
    cells: tuple[Cell | None, ...]
    """In the order of the subjects; None: not measured."""
    best: frozenset[int]
    """The columns that are best, or alike with the best. Empty if all are alike."""


class _Criterion(NamedTuple):
    """A figure by which a scheme can be chosen."""

    name: str
    """After "Not measured:"."""
    reason: str
    """After "Choose it"."""


# In the order in which they matter to most users.
_CRITERIA: Final = {
    "keepalive.requests_per_s": _Criterion(
        "requests/s over keep-alive connections", "when clients keep their connections open"
    ),
    "connect.requests_per_s": _Criterion(
        "requests/s with a connection for each", "when most connections carry one request"
    ),
    "rate.p99": _Criterion(
        "p99 latency at a constant rate", "when the slowest 1 % of answers count"
    ),
    "keepalive.cpu": _Criterion("CPU per keep-alive request", "when processors are short"),
    "connect.cpu": _Criterion(
        "CPU per connection", "when connections are short and processors too"
    ),
    "held.fds": _Criterion("descriptors per connection", "when descriptors run out first"),
    "held.memory": _Criterion("memory per connection", "when many connections are open and idle"),
    "split.jain": _Criterion("evenness of the split", "when all workers have to share evenly"),
    "kill.failed": _Criterion("failed requests when a worker dies", "when workers may die"),
    "roll.failed": _Criterion(
        "failed requests while workers are replaced", "when releases are many"
    ),
    "block.worst": _Criterion("worst latency beside a blocked worker", "when requests may block"),
}
ADVICE: Final = ("Choose", "Nothing here speaks for it")
"""The beginnings of the sentence that says when to choose a scheme."""

_MAX_REASONS: Final = 3
_MUCH_WORSE: Final = 1.3
"""A factor to the best value; from here on it is a reason not to choose the scheme."""
_UNEVEN: Final = 0.05
"""The same for Jain's index, as a difference."""
_MAX_BEST_SHARE: Final = 0.6
"""A figure is a reason to choose a scheme if no more than this share of all subjects are best."""


def rows(comparison: Comparison) -> tuple[FigureRow, ...]:
    """Every figure that was measured, with its best."""
    result = []
    for figure in figures(comparison):
        cells = tuple(figure.read(subject) for subject in comparison.subjects)
        result.append(FigureRow(figure, cells, frozenset() if figure.role else best(figure, cells)))
    return tuple(result)


def best(figure: Figure, cells: Sequence[Cell | None]) -> frozenset[int]:
    """The columns that are alike with the best one. Empty if all are."""
    valid = {n: cell for n, cell in enumerate(cells) if cell and cell.doubt != "errors"}
    if len(valid) < 2:
        return frozenset()
    top = (max if figure.more_is_better else min)(valid.values(), key=lambda cell: cell.value)
    level = {n for n, cell in valid.items() if cell.doubt == "limited" or alike(figure, top, cell)}
    return frozenset(level) if len(level) < len(valid) else frozenset()


def paragraphs(comparison: Comparison) -> dict[str, str]:
    """For each subject: when to choose it, what it does best, and what it costs; in figures."""
    all_rows = rows(comparison)
    names = [subject.name for subject in comparison.subjects]
    return {
        subject.name: " ".join(_sentences(comparison, subject, column, all_rows, names))
        for column, subject in enumerate(comparison.subjects)
    }


def _sentences(
    comparison: Comparison,
    subject: Subject,
    column: int,
    all_rows: Sequence[FigureRow],
    names: Names,
) -> Iterator[str]:
    criteria = {row.figure.key: row for row in all_rows if row.figure.key in _CRITERIA}
    if not any(row.cells[column] for row in criteria.values()):
        yield "Nothing was measured."
        yield from _notes(subject)
        return
    ranks = {key: text for key, row in criteria.items() if (text := _rank(row, column, names))}
    yield from _choose(criteria, column, subject, names)
    yield from _speed(criteria, ranks, column)
    yield from _cpu(criteria, ranks, subject, column)
    yield from _held(subject, ranks)
    yield from _split(subject)
    yield from _faults(subject)
    yield from _doubts(comparison, subject, criteria, column)


def _rank(row: FigureRow, column: int, names: Names) -> str:
    """How its value compares with the best one, in brackets; "" if all are alike."""
    cell = row.cells[column]
    if cell is None or not row.best:
        return ""
    if row.best == {column}:
        return f" (the best; next {_second(row, column, names)})"
    if column in row.best:
        return " (level with the best)"
    first = _best_of(row, row.best)
    top = row.cells[first]
    assert top
    low, high = sorted((cell.value, top.value))
    if low > 0 and isfinite(high) and row.figure.quantity != "ratio":
        if row.figure.more_is_better:
            return f" ({format_share(low / high)} of {names[first]})"
        if high / low < 1.15:
            return f" ({format_share(high / low - 1)} more than {names[first]})"
        return f" ({format_times(high / low)} {names[first]})"
    return f" ({names[first]} {format_value(row.figure.quantity, top.value)})"


def _second(row: FigureRow, column: int, names: Names) -> str:
    second = _best_of(row, {n for n, cell in enumerate(row.cells) if cell and n != column})
    return f"{names[second]} {_value(row, second)}"


def _best_of(row: FigureRow, columns: Collection[int]) -> int:
    """The column with the best value among these."""
    values = {n: cell.value for n in columns if (cell := row.cells[n])}
    return (max if row.figure.more_is_better else min)(values, key=lambda n: values[n])


def _value(row: FigureRow, column: int) -> str:
    cell = row.cells[column]
    assert cell
    at_least = "at least " if cell.doubt == "limited" and row.figure.more_is_better else ""
    return f"{at_least}{format_value(row.figure.quantity, cell.value)}"


def _speed(
    criteria: Mapping[str, FigureRow], ranks: Mapping[str, str], column: int
) -> Iterator[str]:
    templates = {
        "keepalive.requests_per_s": "{} requests/s over keep-alive connections",
        "connect.requests_per_s": "{} with a connection for each",
        "rate.p99": "at a constant rate 99 % of the answers within {}",
    }
    parts = [
        templates[key].format(_value(criteria[key], column)) + ranks.get(key, "")
        for key in templates
        if key in criteria and criteria[key].cells[column]
    ]
    if parts:
        yield f"{_capitalized(_joined(parts))}."


def _cpu(
    criteria: Mapping[str, FigureRow], ranks: Mapping[str, str], subject: Subject, column: int
) -> Iterator[str]:
    descriptions: dict[LoadKind, str] = {
        "keepalive": "for a keep-alive request",
        "connect": "for one with its own connection",
    }
    parts = []
    for kind, description in descriptions.items():
        row = criteria.get(f"{kind}.cpu")
        if row is None or not row.cells[column]:
            continue
        proxy = subject.loads[kind].cpu_us.get("proxy")
        in_proxy = (
            f", {format_value('cpu', proxy.median)} of it in the proxy"
            if proxy and proxy.values
            else ""
        )
        rank = ranks.get(row.figure.key, "")
        parts.append(f"{_value(row, column)} {description}{rank}{in_proxy}")
    if parts:
        yield f"It costs CPU: {'; '.join(parts)}."


def _held(subject: Subject, ranks: Mapping[str, str]) -> Iterator[str]:
    held = subject.held
    if not held or not held.fds:
        return
    text = f"An open connection takes {_count(sum(held.fds.values()), 'descriptor')}"
    text += ranks.get("held.fds", "")
    parts = [role for role in roles(list(held.fds)) if held.fds[role] >= 0.05]
    if len(parts) > 1:
        text += f", {_joined([f'{held.fds[role]:.3g} in the {role}' for role in parts])}"
    ports = held.ephemeral_ports
    text += f", {_count(ports, 'local port')}" if ports >= 0.05 else ", no local port"
    if held.memory:
        text += f" and {format_value('memory', sum(held.memory.values()))} of memory"
        text += ranks.get("held.memory", "")
    yield f"{text}."


def _split(subject: Subject) -> Iterator[str]:
    counts = list(subject.split.values())
    total = sum(counts)
    if len(counts) < 2 or not total:
        return
    counted = subject.split_of
    largest, smallest = max(counts) / total, min(counts) / total
    jain = "" if subject.jain is None else f" (Jain {subject.jain:.3f})"
    if largest - smallest < 0.02:
        even = format_share(1 / len(counts))
        yield f"Each of {len(counts)} workers had {even} of the {counted}{jain}."
    else:
        yield (
            f"The busiest of {len(counts)} workers had {format_share(largest)} of the {counted}, "
            f"the least busy {format_share(smallest)}{jain}."
        )


def _faults(subject: Subject) -> Iterator[str]:
    descriptions: dict[FaultKind, str] = {
        "kill": "when a worker was killed",
        "roll": "while all workers were replaced",
        "block": "beside a worker that was blocked for a second",
    }
    parts = []
    for kind, description in descriptions.items():
        fault = subject.faults.get(kind)
        if fault is None:
            continue
        failed = f"{fault.failed:,} of {fault.requests:,}" if fault.failed else "none"
        text = f"{failed} {description} (worst answer {format_value('time', fault.worst_s)}"
        if fault.full_capacity_s is None:
            text += ", full capacity never back"
        elif kind == "kill":
            text += f", full capacity back after {format_value('time', fault.full_capacity_s)}"
        parts.append(f"{text})")
    if parts:
        yield f"Failed requests: {_joined(parts)}."


def _choose(
    criteria: Mapping[str, FigureRow], column: int, subject: Subject, names: Names
) -> Iterator[str]:
    if not subject.scheme or not any(row.best for row in criteria.values()):
        return
    rows_for = sorted(_rows_for(criteria, column, len(names)), key=lambda row: len(row.best))
    # Reasons that it shares with the same other subjects make one part of the sentence.
    parts = {row.best: "" for row in rows_for[:_MAX_REASONS]}
    for best_columns in parts:
        subjects = _joined(["it", *(names[n] for n in sorted(best_columns - {column}))], "or")
        reasons = [
            _CRITERIA[row.figure.key].reason
            for row in rows_for[:_MAX_REASONS]
            if row.best == best_columns
        ]
        parts[best_columns] = f"{subjects} {_joined(reasons, 'or')}"
    text = f"{ADVICE[0]} {'; '.join(parts.values())}" if rows_for else ADVICE[1]
    rows_against = [row for row in criteria.values() if _times_worse(row, column)]
    rows_against.sort(key=lambda row: -_times_worse(row, column))
    if rows_against:
        reasons = [_CRITERIA[row.figure.key].reason for row in rows_against[:_MAX_REASONS]]
        text += f"; rather not {_joined(reasons, 'or')}"
    yield f"{text}."


def _rows_for(criteria: Mapping[str, FigureRow], column: int, subjects: int) -> Iterator[FigureRow]:
    """The figures that are reasons to choose this one of so many subjects."""
    for row in criteria.values():
        # If most others are best as well, it is no reason to choose this one.
        is_rare = len(row.best) <= max(1.0, _MAX_BEST_SHARE * subjects)
        if column in row.best and is_rare and any(_times_worse(row, n) for n in range(subjects)):
            yield row


def _times_worse(row: FigureRow, column: int) -> float:
    """How many times worse than the best it is. 0: not enough to be a reason."""
    cell = row.cells[column]
    if cell is None or not row.best or column in row.best:
        return 0.0
    top = row.cells[_best_of(row, row.best)]
    assert top
    low, high = sorted((cell.value, top.value))
    if row.figure.quantity == "ratio":
        return high / low if low and high - low >= _UNEVEN else 0.0
    ratio = high / low if low > 0 else inf
    return ratio if ratio >= _MUCH_WORSE else 0.0


def _doubts(
    comparison: Comparison, subject: Subject, criteria: Mapping[str, FigureRow], column: int
) -> Iterator[str]:
    load_names = {
        "keepalive": "keep-alive",
        "connect": "connection-per-request",
        "rate": "constant-rate",
    }
    limited = [load_names[kind] for kind, load in subject.loads.items() if load.limited]
    if limited:
        yield (
            f"Under {_joined(limited)} load the load generator was the limit: "
            "what it could do beyond is not known."
        )
    for kind, load in subject.loads.items():
        if sum(load.errors.values()):
            kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(load.errors.items()))
            failed = format_share(failed_share(load))
            yield f"Under {load_names[kind]} load {failed} of the requests failed ({kinds})."
    if missed_rate := _missed_rate(subject):
        yield missed_rate
    expected = _CRITERIA if comparison.interrupted else criteria
    missing = [
        _CRITERIA[key].name
        for key in expected
        if key not in criteria or criteria[key].cells[column] is None
    ]
    if missing and subject.scheme:
        yield f"Not measured: {_joined(missing)}."
    yield from _notes(subject)


def _notes(subject: Subject) -> Iterator[str]:
    for note in subject.notes:
        yield _capitalized(note if note.endswith(".") else f"{note}.")


def _missed_rate(subject: Subject) -> str:
    load = subject.loads.get("rate")
    if not load or not load.rate or not load.requests_per_s.values:
        return ""
    reached = load.requests_per_s.median / load.rate
    if reached >= 0.97:
        return ""
    share = format_share(reached)
    return f"It reached only {share} of the constant rate, so latencies grew with time."


def _capitalized(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _count(value: float, noun: str) -> str:
    text = format_value("number", round(value, 2))
    return f"{text} {noun}{'' if text == '1' else 's'}"


def _joined(parts: Sequence[str], conjunction: str = "and") -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"
