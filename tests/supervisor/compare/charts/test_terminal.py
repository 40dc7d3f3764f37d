"""The first thing in the terminal is one picture and a sentence for each subject.

Covers `compare/charts/costs`.
"""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from penstock_supervisor.compare.charts import costs, terminal
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.result import Comparison


def written(comparison: Comparison, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(terminal.render(comparison, width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("others", [0, 4])
def test_the_picture_fits_the_terminal(
    compared: Callable[..., Comparison], width: int, others: int
) -> None:
    comparison = compared(others=others, rounds=5)
    lines = written(comparison, width)

    assert max(map(len, lines)) <= width
    for subject in comparison.subjects:
        assert any(line.startswith(subject.name) and "█" in line for line in lines)
        assert subject.name in lines


def test_the_cheapest_subject_is_the_first_and_the_dearest_bar_the_longest(
    compared: Callable[..., Comparison],
) -> None:
    lines = written(compared(rounds=8), 120)
    bars = [line for line in lines if "█" in line]

    assert [line.split()[0] for line in bars] == [
        "shared", "reuseport", "handoff", "ports/tcp", "ports/http",
    ]  # fmt: skip
    assert bars[-1].split()[1] == "█" * 9
    assert "*" in bars[0].split()[2]
    assert "*" not in bars[-1].split()[2]


def test_columns_that_do_not_fit_are_left_out_by_importance(
    compared: Callable[..., Comparison],
) -> None:
    comparison = compared(rounds=5)
    picture = costs.picture(comparison, evaluation.rows(comparison))

    def keys(available: int) -> list[str]:
        return [one.key for one in costs.fitting(picture.columns, lambda _: 10, available)]

    assert keys(60) == [one.key for one in picture.columns]
    assert "held.memory" not in keys(50)
    assert keys(20) == ["keepalive.cpu", "rate.p99"]
    assert keys(0) == ["keepalive.cpu"]


def test_nothing_is_drawn_of_nothing(sample: Comparison) -> None:
    assert written(sample.model_copy(update={"subjects": ()}), 80) == []


def test_a_bar_is_divided_by_role(sample: Comparison) -> None:
    picture = costs.picture(sample, evaluation.rows(sample))
    position = [sample.subjects[n].name for n in picture.order].index("ports/http")
    bar = picture.columns[0].bars[position]

    assert bar
    assert {role for role, _ in bar.parts} == {"proxy", "workers", "supervisor"}
    assert sum(share for _, share in bar.parts) == pytest.approx(1)
