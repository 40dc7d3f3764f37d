"""Compares this run with an earlier one: what became better or worse.

Reads a file that `--json` wrote. It may come from another machine or version, or may have been
edited, so an error is one line that says what is wrong with it. A difference counts only if it
is larger than the spread of both runs (`intervals`). If the two runs were made in different ways,
caveats say so before any figure.
"""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn

from pydantic import ValidationError

from penstock_supervisor.compare.report.figures import Figure, figures, judge
from penstock_supervisor.compare.report.result import FORMAT, READABLE, Comparison

MAX_BYTES: Final = 64 * 2**20
"""A result has some hundred kilobytes; a larger file is something else."""

Sign = Literal["better", "worse", "alike"]


class Difference(NamedTuple):
    """One figure of one subject, then and now."""

    figure: Figure
    subject: str
    then: float
    now: float
    sign: Sign
    """alike: within the spread of the two runs."""

    @property
    def change(self) -> float | None:
        """Relative to `then`. None: that was zero, or one of the two is infinite."""
        if not self.then or not (isfinite(self.then) and isfinite(self.now)):
            return None
        return self.now / self.then - 1

    @property
    def text(self) -> str:
        """`+12% better`; `=` for alike."""
        sign = "=" if self.sign == "alike" else self.sign
        if self.change is None:
            return sign
        if self.change >= 9.995:
            return f"{self.now / self.then:.0f} times {sign}"
        percent = round(self.change * 100)
        return f"{percent:+d}% {sign}" if percent else f"0% {sign}"


def load(path: Path) -> Comparison:
    """Read a result; ValueError with one line that names the file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is no result of penstock compare: more than 64 MiB")
    try:
        parsed = json.loads(
            content,
            object_hook=_with_current_names,
            parse_constant=_reject_constant,
            parse_float=_parse_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {_line(str(error))}") from error
    return _comparison(parsed, path)


def _with_current_names(parsed: dict[str, Any]) -> dict[str, Any]:
    """Older files have the role "front" for the proxy."""
    if "front" in parsed:
        parsed["proxy"] = parsed.pop("front")
    return parsed


def differences(now: Comparison, then: Comparison) -> tuple[Difference, ...]:
    """Every figure that both runs have, of subjects with the same name."""
    then_by_name = {subject.name: subject for subject in then.subjects}
    noises = [one.noise for one in (now, then) if one.noise]
    noise = max(noises, key=lambda one: one.share, default=None)
    result = []
    for figure in figures(now):
        for subject in now.subjects:
            new = figure.read(subject)
            old = figure.read(then_by_name[subject.name]) if subject.name in then_by_name else None
            if new is None or old is None:
                continue
            found = judge(figure, new, old, noise, paired=False)
            sign: Sign = "alike" if found == "level" else found
            if "limited" in (new.doubt, old.doubt):
                sign = "alike"
            result.append(Difference(figure, subject.name, old.value, new.value, sign))
    return tuple(result)


def caveats(now: Comparison, then: Comparison) -> tuple[str, ...]:
    """Differences between the ways in which the two runs were made, one line each."""
    return tuple(_caveats(now, then))


def _caveats(now: Comparison, then: Comparison) -> Iterator[str]:
    for key in sorted(now.machine.keys() & then.machine.keys()):
        if now.machine[key] != then.machine[key]:
            yield f"{key} was {then.machine[key]}, now {now.machine[key]}"
    for name, old, new in (
        ("penstock", then.penstock, now.penstock),
        # Older formats do not say it.
        ("build", then.build or now.build, now.build or then.build),
        ("workers", then.workers, now.workers),
        ("seconds of a load", then.seconds, now.seconds),
        ("access log", _on(then), _on(now)),
        ("load generator", _generators(then), _generators(now)),
    ):
        if old != new:
            yield f"{name}: {old}, now {new}"
    if then.config != now.config:
        yield "the configuration was another"
    if _rates(then) != _rates(now):
        yield "the constant rate was another, so its latencies differ by that too"
    missing = {one.name for one in now.subjects} - {one.name for one in then.subjects}
    if missing:
        yield f"the baseline has no {', '.join(sorted(missing))}"


def _on(comparison: Comparison) -> str:
    return "on" if comparison.access_log else "off"


def _generators(comparison: Comparison) -> str:
    names = {load.generator for one in comparison.subjects for load in one.loads.values()}
    return " and ".join(sorted(names))


def _rates(comparison: Comparison) -> set[float]:
    return {one.loads["rate"].rate for one in comparison.subjects if "rate" in one.loads}


def _comparison(parsed: Any, path: Path) -> Comparison:
    if not isinstance(parsed, dict) or not {"format", "subjects"} <= parsed.keys():
        raise ValueError(f"{path} is no result of penstock compare --json")
    if parsed["format"] not in READABLE:
        *most, last = map(str, READABLE)
        readable = f"{', '.join(most)} and {last}"
        raise ValueError(
            f"{path} has format {_line(str(parsed['format']))}, and this version reads {readable}"
        )
    parsed["format"] = FORMAT
    try:
        comparison = Comparison.model_validate(parsed, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {_line(where)}: {_line(first['msg'])}") from error
    names = [subject.name for subject in comparison.subjects]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} has two subjects named {_line(name)}")
    return comparison


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no figure")


def _parse_finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{_line(text)} is no figure")
    return value


def _line(text: str) -> str:
    """The text as one line of limited length, because it comes from the file."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain if len(plain) <= 120 else f"{plain[:119]}…"
