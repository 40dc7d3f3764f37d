"""Says what was found in plain words: a few for each subject, and one sentence for all.

What a subject costs is made of verdicts and holds no measured number but what was counted exactly,
so two runs that found the same say the same. The numbers are in the picture above it. There is a
superlative only where it is sure against every other subject; otherwise those are named against
whom it is sure, and who is not named is level. When to choose a scheme does not depend on what was
measured: `qualities` has the words.

No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import truediv
from statistics import median
from typing import Final

from penstock_supervisor.compare.report.evaluation import COST, NOISY, FigureRow
from penstock_supervisor.compare.report.figures import failed_share
from penstock_supervisor.compare.report.intervals import ratio, verdict
from penstock_supervisor.compare.report.qualities import choose_when
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
    "held.memory": "many connections are idle",
}
"""Figures that are a reason to choose what no quality is known of; the important ones first."""
_MAX_REASONS: Final = 2
_MAX_BEST_SHARE: Final = 0.6
"""Where more than this share of all are best, it is no reason to choose one of them."""
_MAX_LEFT_OUT: Final = 2
"""So many are named as level, because few are; or in place of all others."""
_WHERE: Final = {COST[0]: "on kept connections", COST[1]: "on new ones"}
_MANY_FDS: Final = 1.5
_NUMBERS: Final = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_NO_DIFFERENCE: Final = "no clear difference in CPU"
QUICK: Final = "Quick: few short rounds, so only large differences are said"
LOADS: Final[Mapping[LoadKind, str]] = {
    "keepalive": "keep-alive", "connect": "connection-per-request", "rate": "constant-rate",
}  # fmt: skip


def sentences(comparison: Comparison, all_rows: Sequence[FigureRow]) -> dict[str, str]:
    """For each subject, what it costs and when to choose it."""
    names = [subject.name for subject in comparison.subjects]
    by_key = {row.figure.key: row for row in all_rows}
    return {
        one.name: f"{_found(by_key, column, names, one)} {choose_when(one)}".strip()
        for column, one in enumerate(comparison.subjects)
    }


def headline(comparison: Comparison, all_rows: Sequence[FigureRow]) -> str:
    """What a request costs, over all subjects. "" if there is nothing to compare."""
    names = [subject.name for subject in comparison.subjects]
    row = next((one for one in all_rows if one.figure.key == COST[0]), None)
    if row is None or sum(cell is not None for cell in row.cells) < 2:
        return ""
    if row.best:
        level = "Level at the least" if len(row.best) > 1 else "Least"
        return f"{level} CPU a request{_among(row)}: {_names(row.best, names)}."
    if beaten := [n for n in row.valid if row.better[n]]:
        them = _names(beaten, names)
        return f"No clear winner in CPU a request; these surely cost more than others: {them}."
    return "A request costs the same CPU everywhere, or no difference is clear."


def _found(
    by_key: Mapping[str, FigureRow], column: int, names: Sequence[str], subject: Subject
) -> str:
    """A whole sentence, or two."""
    if not any(row.cells[column] for row in by_key.values()):
        return "Nothing was measured."
    if len(names) < 2:
        return "Nothing to compare it with."
    if not any(any(row.better) for row in by_key.values()):
        return "Level with the others in everything that was measured."
    cost = _cost(by_key, column, names) + _descriptors(by_key.get("held.fds"), column)
    text = f"{cost[:1].upper()}{cost[1:]}."
    if not subject.scheme and (wins := list(_wins(by_key, column, names))):
        text += f" Wins when {joined(wins, 'or')}."
    return text


def _cost(by_key: Mapping[str, FigureRow], column: int, names: Sequence[str]) -> str:
    found = {
        key: _standing(by_key[key], column, names)
        for key in COST
        if key in by_key and by_key[key].cells[column]
    }
    if not found:
        return "what it costs is not known"
    if len(found) == len(COST) and len(set(found.values())) == 1:
        return found[COST[0]]
    return "; ".join(f"{_WHERE[key]} {text}" for key, text in found.items())


def _standing(row: FigureRow, column: int, names: Sequence[str]) -> str:
    """What CPU it costs, beside the others."""
    if column not in row.valid:
        return "what CPU it costs is not known, because too many requests failed"
    better, worse, level = row.better[column], row.worse(column) & row.valid, row.level(column)
    among = _among(row)
    if row.best == {column}:
        return f"least CPU{among}"
    if column in row.best:
        return f"level with {_names(level, names)} at the least CPU{among}"
    if row.last == column:
        return f"most CPU{among}"
    more, less = ("more CPU than", "less than" if better else "less CPU than")
    if bool(better) != bool(worse) and 0 < len(level) <= _MAX_LEFT_OUT < len(better | worse):
        # Those that are left out can only be level with it.
        return f"{more if better else less} all but {_names(level, names)}"
    parts = [
        f"{words} {_names(those, names)}"
        for words, those in ((more, better), (less, worse))
        if those
    ]
    if parts and 0 < len(level) <= _MAX_LEFT_OUT:
        parts.append(f"level with {_names(level, names)}")
    return ", ".join(parts) or _NO_DIFFERENCE


def _among(row: FigureRow) -> str:
    """Beside whom there is a superlative, if not beside all."""
    return "" if len(row.valid) == len(row.cells) else " of those measured"


def _names(columns: Collection[int], names: Sequence[str]) -> str:
    return joined([names[n] for n in sorted(columns)])


def _descriptors(row: FigureRow | None, column: int) -> str:
    cell = row.cells[column] if row else None
    if row is None or cell is None or not row.better[column] or cell.value < _MANY_FDS:
        return ""
    count = round(cell.value)
    return f"; {_NUMBERS.get(count, count)} descriptors a connection"


def _wins(by_key: Mapping[str, FigureRow], column: int, names: Sequence[str]) -> Iterator[str]:
    """The reasons to choose it, and who else is as good there."""
    most = max(1.0, _MAX_BEST_SHARE * len(names))
    keys = [
        key for key in _WINS
        if key in by_key and column in by_key[key].best and len(by_key[key].best) <= most
    ]  # fmt: skip
    for key in keys[:_MAX_REASONS]:
        others = by_key[key].best - {column}
        yield _WINS[key] + (f" (level with {_names(others, names)})" if others else "")


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


def origin(comparison: Comparison) -> tuple[str, ...]:
    """When, of what and where it was measured."""
    build = f", {comparison.build}" if comparison.build else ""
    machine = (comparison.machine.get(key) for key in ("cpu", "kernel"))
    return (
        comparison.started[:10],
        f"penstock {comparison.penstock}{build}",
        *filter(None, machine),
    )


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
