"""Who is better than whom follows from the figures, whatever the subjects are called.

Covers `compare/report/figures`.
"""

from collections.abc import Callable

import pytest

from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell, Figure, figures, judge
from penstock_supervisor.compare.report.result import Comparison, LoadKind, Noise, Subject


def cell(value: float, spread: float = 0.0, doubt: str = "") -> Cell:
    values = (value - spread, value, value + spread)
    return Cell(value, value - spread, value + spread, 3, doubt, values)  # type: ignore[arg-type]


def once(value: float) -> Cell:
    return Cell(value, value, value)


MORE = Figure(
    key="more", section="x", label="x", quantity="rate", more_is_better=True, read=lambda _: None
)
LESS = Figure(key="less", section="x", label="x", quantity="time", read=lambda _: None)
COUNT = Figure(
    key="count", section="x", label="x", quantity="number", counted=True, read=lambda _: None
)
CPU = Figure(key="cpu", section="x", label="x", quantity="cpu", read=lambda _: None)


@pytest.mark.parametrize(
    ("figure", "cells", "best"),
    [
        (MORE, [cell(10), cell(20), cell(15)], {1}),
        (LESS, [cell(10), cell(20), cell(15)], {0}),
        # The values of one round were measured in the same minute: the ratios count.
        (LESS, [cell(10, 3), cell(12, -3), cell(30, 3)], {0, 1}),
        # Well measured, but four per cent are no reason to choose.
        (LESS, [cell(100), cell(104), cell(150)], {0, 1}),
        # It varied too much to be beaten by the first: nobody is surely better than all others.
        (LESS, [cell(10), cell(20), cell(30, 25)], set()),
        # Level with each of its neighbours, and the ends are not level: no group is.
        (LESS, [cell(100), cell(104), cell(109)], set()),
        # If all are level, none is the best; the same if only one was measured.
        (LESS, [cell(10, 3), cell(12, -3)], set()),
        (LESS, [cell(10), None, None], set()),
        (LESS, [None, None], set()),
        # A subject that the load generator limited may be as good as the best.
        (MORE, [cell(10, doubt="limited"), cell(20), cell(15)], set()),
        (MORE, [cell(20, doubt="limited"), cell(20), cell(15)], {0, 1}),
        (MORE, [cell(10, doubt="limited"), cell(20, doubt="limited")], set()),
        # Errors are quick, so a subject with errors is not the best.
        (LESS, [cell(1, doubt="errors"), cell(20), cell(40)], {1}),
        # An infinite value is worse than any other.
        (LESS, [once(float("inf")), once(20)], {1}),
        (LESS, [once(0), once(0), once(1)], {0, 1}),
        # Seven lost requests may be chance, twenty are not.
        (COUNT, [once(0), once(7)], set()),
        (COUNT, [once(0), once(20)], {0}),
        (COUNT, [once(20), once(30)], set()),
    ],
)
def test_the_best_are_surely_better_than_all_others_and_level_with_each_other(
    figure: Figure, cells: list[Cell | None], best: set[int]
) -> None:
    assert evaluation.row(figure, tuple(cells)).best == best


def test_a_noisy_machine_needs_larger_differences_and_cpu_time_only_if_work_varies() -> None:
    taken = Noise(stolen=0.5, varies=0.02, late_s=0.001)
    assert judge(LESS, cell(10), cell(12)) == "better"
    assert judge(LESS, cell(10), cell(12), taken) == "level"
    assert judge(CPU, cell(10), cell(12), taken) == "better"
    assert judge(CPU, cell(10), cell(12), Noise(stolen=0.0, varies=0.3, late_s=0.0)) == "level"


def test_zero_and_infinite_values_have_no_spread() -> None:
    assert cell(0, 1).spread == 0
    assert Cell(float("inf"), float("inf"), float("inf"), 3).spread == 0
    assert cell(100, 4).spread == pytest.approx(0.04)


def test_a_row_has_a_cell_for_each_subject_and_no_best_for_a_single_role(
    sample: Comparison,
) -> None:
    for row in evaluation.rows(sample):
        assert len(row.cells) == len(sample.subjects)
        assert any(row.cells)
        if row.figure.role:
            assert not row.best


def test_every_figure_has_a_unique_key(sample: Comparison) -> None:
    keys = [figure.key for figure in figures(sample)]

    assert len(keys) == len(set(keys))
    assert {"keepalive.requests_per_s", "connect.cpu.proxy", "held.fds", "split.jain",
            "roll.failed"} <= set(keys)  # fmt: skip


def test_errors_have_a_row_only_if_a_subject_had_some(sample: Comparison) -> None:
    assert "keepalive.errors" not in {figure.key for figure in figures(sample)}

    failing = failed(sample.subjects[0], "keepalive", 3)
    some = sample.model_copy(update={"subjects": (failing, *sample.subjects[1:])})

    assert "keepalive.errors" in {figure.key for figure in figures(some)}


@pytest.mark.parametrize("seed", range(5))
def test_subjects_are_in_the_order_of_their_costs(
    compared: Callable[..., Comparison], seed: int
) -> None:
    found = compared(seed=seed, rounds=8)
    names = [found.subjects[n].name for n in evaluation.order(found, evaluation.rows(found))]

    assert names == ["shared", "reuseport", "handoff", "ports/tcp", "ports/http"]


def test_rounds_go_on_until_the_subjects_are_told_apart(
    compared: Callable[..., Comparison],
) -> None:
    assert evaluation.is_settled_by(compared(rounds=12, noise=0.1))
    assert not evaluation.is_settled_by(compared(rounds=3, noise=4.0))


def failed(subject: Subject, kind: LoadKind, many: int) -> Subject:
    load = subject.loads[kind].model_copy(update={"errors": {"reset": many}})
    return subject.model_copy(update={"loads": {**subject.loads, kind: load}})
