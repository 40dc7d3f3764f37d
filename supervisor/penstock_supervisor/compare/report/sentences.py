"""Says what was found in plain words: one sentence for each subject, and one for all.

A sentence is made of verdicts and holds no measured number but what was counted exactly, so two
runs that found the same say the same. The numbers are in the picture above it. A difference that
the rounds do not bear is no difference: then a subject is level with another.

No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import truediv
from statistics import median
from typing import Final

from penstock_supervisor.compare.report.evaluation import COST, NOISY, FigureRow
from penstock_supervisor.compare.report.figures import failed_share
from penstock_supervisor.compare.report.intervals import ratio, verdict
from penstock_supervisor.compare.report.result import (
    Comparison,
    LoadKind,
    Spread,
    Subject,
    Verification,
)
from penstock_supervisor.compare.report.units import Quantity, format_share, format_value

_WINS: Final = {
    "keepalive.requests_per_s": "connections are kept",
    "connect.requests_per_s": "connections are short",
    "rate.p99": "the slowest answers count",
    "kill.failed": "workers may die",
    "roll.failed": "releases are many",
    "held.memory": "many connections are idle",
    "split.jain": "workers have to share evenly",
}
"""Figures that are a reason to choose a subject, after "wins when"; the important ones first.

The worst latency beside a blocked worker is none: where workers take connections themselves, it
is chance whether the blocked one had any.
"""
_MAX_REASONS: Final = 2
_MAX_BEST_SHARE: Final = 0.6
"""Where more than this share of all are best, it is no reason to choose one of them."""
_MAX_NAMES: Final = 4
_MANY_FDS: Final = 1.5
_NUMBERS: Final = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
QUICK: Final = "Quick: few short rounds, so only large differences are said"
LOADS: Final[Mapping[LoadKind, str]] = {
    "keepalive": "keep-alive", "connect": "connection-per-request", "rate": "constant-rate",
}  # fmt: skip


def sentences(comparison: Comparison, all_rows: Sequence[FigureRow]) -> dict[str, str]:
    """For each subject, what it costs and when it wins."""
    names = [subject.name for subject in comparison.subjects]
    by_key = {row.figure.key: row for row in all_rows}
    return {name: _sentence(by_key, column, names) for column, name in enumerate(names)}


def headline(comparison: Comparison, all_rows: Sequence[FigureRow]) -> str:
    """What a request costs, over all subjects. "" if there is nothing to compare."""
    names = [subject.name for subject in comparison.subjects]
    row = next((one for one in all_rows if one.figure.key == COST[0]), None)
    if row is None or sum(cell is not None for cell in row.cells) < 2:
        return ""
    if not row.best:
        return "A request costs the same CPU everywhere, or no difference is clear."
    best = [names[n] for n in sorted(row.best)]
    if len(best) == 1:
        return f"Least CPU a request: {best[0]}."
    return f"Least CPU a request, with no clear difference: {joined(best)}."


def _sentence(by_key: Mapping[str, FigureRow], column: int, names: Sequence[str]) -> str:
    if not any(row.cells[column] for row in by_key.values()):
        return "Nothing was measured."
    if len(names) < 2:
        return "Nothing to compare it with."
    if not any(row.best for row in by_key.values()):
        return "Level with the others in everything that was measured."
    cost = _cost(by_key, column, names) + _descriptors(by_key.get("held.fds"), column)
    if wins := list(_wins(by_key, column, names)):
        return f"{cost}; wins when {joined(wins, 'or')}."
    return f"{cost}; nothing else here speaks for it."


def _cost(by_key: Mapping[str, FigureRow], column: int, names: Sequence[str]) -> str:
    rows = [by_key[key] for key in COST if key in by_key and by_key[key].cells[column]]
    if not rows:
        return "What it costs is not known"
    kept, new = (_rank(row, column) for row in (rows[0], rows[-1]))
    if kept == new:
        text = _part(rows[0], kept, column, names) or "no clear difference in CPU"
        return f"{text[:1].upper()}{text[1:]}"
    parts = [
        text for text in (
            _part(rows[0], kept, column, names, "on kept connections"),
            _part(rows[-1], new, column, names, "on new ones" if kept else "on new connections"),
        ) if text
    ]  # fmt: skip
    return f"{parts[0][:1].upper()}{parts[0][1:]}" + "".join(f", {one}" for one in parts[1:])


def _rank(row: FigureRow, column: int) -> str:
    """least, most, more (than some) or unclear; "" if there is no difference at all."""
    if not row.best:
        return ""
    if column in row.best:
        return "least"
    if not row.better[column]:
        return "unclear"
    return "more" if row.worse(column) else "most"


def _part(row: FigureRow, rank: str, column: int, names: Sequence[str], where: str = "") -> str:
    match rank:
        case "":
            return ""
        case "unclear":
            return f"what CPU it costs {where} varied too much to say".replace("  ", " ")
        case "more":
            better = _some([names[n] for n in sorted(row.better[column])])
            return f"more CPU than {better} {where}".rstrip()
        case _:
            return f"{rank} CPU {where}".rstrip()


def _descriptors(row: FigureRow | None, column: int) -> str:
    cell = row.cells[column] if row else None
    if row is None or cell is None or not row.better[column] or cell.value < _MANY_FDS:
        return ""
    count = round(cell.value)
    return f", and {_NUMBERS.get(count, count)} descriptors a connection"


def _wins(by_key: Mapping[str, FigureRow], column: int, names: Sequence[str]) -> Iterator[str]:
    """The reasons to choose it, and who else is as good there."""
    most = max(1.0, _MAX_BEST_SHARE * len(names))
    keys = [
        key for key in _WINS
        if key in by_key and column in by_key[key].best and len(by_key[key].best) <= most
    ]  # fmt: skip
    for key in keys[:_MAX_REASONS]:
        others = [names[n] for n in sorted(by_key[key].best - {column})]
        yield _WINS[key] + (f" (with {_some(others)})" if others else "")


def _some(names: Sequence[str]) -> str:
    return joined(names) if len(names) <= _MAX_NAMES else f"{len(names)} others"


def doubts(comparison: Comparison, subject: Subject) -> Iterator[str]:
    """What a reader has to know before believing its figures. Whole sentences."""
    limited = [LOADS[kind] for kind, load in subject.loads.items() if load.limited]
    if limited:
        yield (
            f"Under {joined(limited)} load the load generator was the limit: "
            "what it could do beyond is not known."
        )
    for kind, load in subject.loads.items():
        if sum(load.errors.values()):
            kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(load.errors.items()))
            failed = format_share(failed_share(load))
            yield f"Under {LOADS[kind]} load {failed} of the requests failed ({kinds})."
    if missed_rate := _missed_rate(subject):
        yield missed_rate
    if comparison.interrupted and not subject.faults and subject.scheme:
        yield "Not all was measured."
    for note in subject.notes:
        yield f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def _missed_rate(subject: Subject) -> str:
    load = subject.loads.get("rate")
    if not load or not load.rate or not load.requests_per_s.values:
        return ""
    reached = load.requests_per_s.median / load.rate
    if reached >= 0.97:
        return ""
    share = format_share(reached)
    return f"It reached only {share} of the constant rate, so latencies grew with time."


def circumstances(comparison: Comparison) -> str:
    """How it was measured, in a line."""
    rounds = f"{comparison.rounds} round{'' if comparison.rounds == 1 else 's'}"
    kinds = {load.generator for one in comparison.subjects for load in one.loads.values()}
    generators = {"own": "our generator", "wrk": "wrk"}
    made = f", load by {joined([generators[kind] for kind in sorted(kinds)])}" if kinds else ""
    log = "on" if comparison.access_log else "off"
    return (
        f"{comparison.workers} workers, {rounds} of {comparison.seconds:g} s for each load{made}, "
        f"access log {log}"
    )


def verification(found: Verification) -> str:
    """Our generator and wrk, one beside the other.

    How far apart they are is the median over the turns, in which the machine is the same for both.
    """
    values = _of_both(found.own, found.wrk, "rate")
    text = f"Requests/s of the {LOADS[found.kind]} load: {values}{_apart(found)}."
    if found.own_cpu_us.values and found.wrk_cpu_us.values:
        cpu = _of_both(found.own_cpu_us, found.wrk_cpu_us, "cpu")
        text += f" CPU of the generator itself a request: {cpu}."
    return text


def _apart(found: Verification) -> str:
    own, wrk = found.own.values, found.wrk.values
    if min(wrk) <= 0:
        return ""
    text = f", {format_share(abs(median(map(truediv, own, wrk)) - 1))} apart"
    if len(own) < 3 or verdict(ratio(own, wrk), more_is_better=True, margin=0.0) != "level":
        return text
    return f"{text}, no clear difference"


def _of_both(own: Spread, wrk: Spread, unit: Quantity) -> str:
    return f"ours {format_value(unit, own.median)}, wrk {format_value(unit, wrk.median)}"


def is_noisy(comparison: Comparison) -> bool:
    return comparison.noise is not None and comparison.noise.share >= NOISY


def noise(comparison: Comparison) -> str:
    """How quiet the machine was. "" if that was not measured."""
    found = comparison.noise
    if found is None:
        return ""
    text = (
        f"Noise before the start: {format_share(found.stolen)} of each core was taken by others, "
        f"equal work varied by {format_share(found.varies)}, "
        f"a sleeper woke up to {format_value('time', found.late_s)} late."
    )
    if is_noisy(comparison):
        text += (
            f" Only differences in speed beyond {format_share(found.share)} are said: "
            "a quiet machine would say more."
        )
    return text


def joined(parts: Collection[str], conjunction: str = "and") -> str:
    *most, last = parts
    return f"{', '.join(most)} {conjunction} {last}" if most else last
