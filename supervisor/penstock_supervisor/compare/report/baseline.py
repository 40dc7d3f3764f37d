"""An earlier run beside this one: what became better, worse, or cannot be told.

Reads a file that `--json` wrote, which may come from another machine, another version or
somebody's editor, so what is wrong with it is said in one line. A difference counts only
when it exceeds the spread of both runs; and where the two runs were not made alike, that
is said before any figure.
"""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn

from pydantic import ValidationError

from penstock_supervisor.compare.report.figures import Figure, alike, figures
from penstock_supervisor.compare.report.result import FORMAT, Comparison

MAX_BYTES: Final = 64 * 2**20
"""A result has some hundred kilobytes; whatever is larger is something else."""

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
        """As a share of what it was; None when it was nothing or has no end."""
        if not self.then or not (isfinite(self.then) and isfinite(self.now)):
            return None
        return self.now / self.then - 1

    @property
    def text(self) -> str:
        """`+12% better`; `=` for alike."""
        word = "=" if self.sign == "alike" else self.sign
        if self.change is None:
            return word
        if self.change >= 9.995:
            return f"{self.now / self.then:.0f} times {word}"
        percent = round(self.change * 100)
        return f"{percent:+d}% {word}" if percent else f"0% {word}"


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
        found = json.loads(
            content, object_hook=_renamed, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {_line(str(error))}") from error
    return _comparison(found, path)


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    """By role, an object of a file from when the proxy was called front."""
    if "front" in found:
        found["proxy"] = found.pop("front")
    return found


def differences(now: Comparison, then: Comparison) -> tuple[Difference, ...]:
    """Every figure that both runs have, of subjects with the same name."""
    before = {subject.name: subject for subject in then.subjects}
    found = []
    for figure in figures(now):
        for subject in now.subjects:
            new = figure.read(subject)
            old = figure.read(before[subject.name]) if subject.name in before else None
            if new is None or old is None:
                continue
            sign: Sign = "better" if (new.value > old.value) == figure.more else "worse"
            if alike(figure, new, old) or "limited" in (new.doubt, old.doubt):
                sign = "alike"
            found.append(Difference(figure, subject.name, old.value, new.value, sign))
    return tuple(found)


def caveats(now: Comparison, then: Comparison) -> tuple[str, ...]:
    """Why the two runs may not be compared so easily, a line each."""
    return tuple(_caveats(now, then))


def _caveats(now: Comparison, then: Comparison) -> Iterator[str]:
    for key in sorted(now.machine.keys() & then.machine.keys()):
        if now.machine[key] != then.machine[key]:
            yield f"{key} was {then.machine[key]}, now {now.machine[key]}"
    for what, old, new in (
        ("penstock", then.penstock, now.penstock),
        ("workers", then.workers, now.workers),
        ("rounds", then.rounds, now.rounds),
        ("seconds of a load", then.seconds, now.seconds),
    ):
        if old != new:
            yield f"{what}: {old}, now {new}"
    if then.config != now.config:
        yield "the configuration was another"
    if _rates(then) != _rates(now):
        yield "the constant rate was another, so its latencies differ by that too"
    missing = {one.name for one in now.subjects} - {one.name for one in then.subjects}
    if missing:
        yield f"the baseline has no {', '.join(sorted(missing))}"


def _rates(comparison: Comparison) -> set[float]:
    return {one.loads["rate"].rate for one in comparison.subjects if "rate" in one.loads}


def _comparison(found: Any, path: Path) -> Comparison:
    if not isinstance(found, dict) or not {"format", "subjects"} <= found.keys():
        raise ValueError(f"{path} is no result of penstock compare --json")
    if found["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {_line(str(found['format']))}, and this version reads {FORMAT}"
        )
    try:
        comparison = Comparison.model_validate(found, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {_line(where)}: {_line(first['msg'])}") from error
    names = [subject.name for subject in comparison.subjects]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} has two subjects named {_line(name)}")
    return comparison


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no figure")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{_line(text)} is no figure")
    return value


def _line(text: str) -> str:
    """One line of a readable length, whatever was in the file."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain if len(plain) <= 120 else f"{plain[:119]}…"
