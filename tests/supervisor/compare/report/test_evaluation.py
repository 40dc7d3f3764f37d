"""The evaluation of the schemes follows from the figures, and names what is missing or doubtful.

Covers `compare/report/figures`.
"""

import re
from collections.abc import Callable

import pytest

from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell, Figure, figures
from penstock_supervisor.compare.report.result import (
    Comparison,
    HeldResult,
    LoadKind,
    LoadResult,
    Spread,
    Subject,
)


def cell(value: float, spread: float = 0.0, rounds: int = 3, doubt: str = "") -> Cell:
    return Cell(value, value - spread, value + spread, rounds, doubt)  # type: ignore[arg-type]


MORE = Figure(
    key="more", section="x", label="x", quantity="rate", more_is_better=True, read=lambda _: None
)
LESS = Figure(key="less", section="x", label="x", quantity="time", read=lambda _: None)


@pytest.mark.parametrize(
    ("figure", "cells", "best"),
    [
        (MORE, [cell(10), cell(20), cell(15)], {1}),
        (LESS, [cell(10), cell(20), cell(15)], {0}),
        (LESS, [cell(10, 3), cell(12, 1), cell(15)], {0, 1}),
        # Narrow spreads, but two per cent are no reason to choose.
        (LESS, [cell(100), cell(102), cell(150)], {0, 1}),
        # With one round each, the spread is unknown.
        (LESS, [cell(100, rounds=1), cell(108, rounds=1), cell(150, rounds=1)], {0, 1}),
        # If all are alike, none is the best; the same if only one was measured.
        (LESS, [cell(10, 3), cell(12, 3)], set()),
        (LESS, [cell(10), None, None], set()),
        (LESS, [None, None], set()),
        # A subject that the load generator limited may be as good as the best.
        (MORE, [cell(10, doubt="limited"), cell(20), cell(15)], {0, 1}),
        (MORE, [cell(10, doubt="limited"), cell(20, doubt="limited")], set()),
        # Errors are quick, so a subject with errors is not the best.
        (LESS, [cell(1, doubt="errors"), cell(20), cell(40)], {1}),
        # An infinite value is worse than any other.
        (LESS, [cell(float("inf"), rounds=1), cell(20, rounds=1)], {1}),
        (LESS, [cell(0, rounds=0), cell(0, rounds=0), cell(1, rounds=0)], {0, 1}),
    ],
)
def test_results_within_the_spread_of_the_best_count_as_best(
    figure: Figure, cells: list[Cell | None], best: set[int]
) -> None:
    assert evaluation.best(figure, cells) == best


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


def test_each_subject_gets_a_paragraph_with_its_costs_and_when_to_choose_it(
    sample: Comparison,
) -> None:
    paragraphs = evaluation.paragraphs(sample)

    assert list(paragraphs) == ["ports/http", "ports/tcp", "handoff", "shared", "reuseport"]
    assert (
        "3 descriptors (3 times handoff), 2 in the proxy and 1 in the workers"
        in paragraphs["ports/http"]
    )
    assert "rather not when descriptors run out first" in paragraphs["ports/http"]
    assert "1 local port" in paragraphs["ports/tcp"]
    assert "1 descriptor (level with the best), no local port" in paragraphs["handoff"]
    assert "The busiest of 4 workers had 36 %" in paragraphs["shared"]
    assert "full capacity never back" in paragraphs["reuseport"]
    for text in paragraphs.values():
        assert text.startswith(evaluation.ADVICE)
        assert "It costs CPU: " in text


def test_an_external_address_is_described_and_not_recommended(
    compared: Callable[..., Comparison],
) -> None:
    text = evaluation.paragraphs(compared(others=1))["127.0.0.1:8080"]

    assert "Choose" not in text
    assert "requests/s over keep-alive connections" in text
    assert "Not measured" not in text


def test_figures_that_were_not_measured_are_listed_and_not_shown_as_zero(
    sample: Comparison,
) -> None:
    bare = sample.subjects[2].model_copy(
        update={"held": None, "faults": {}, "notes": ("held connections: too few descriptors",)}
    )
    others = (*sample.subjects[:2], *sample.subjects[3:])
    text = evaluation.paragraphs(sample.model_copy(update={"subjects": (bare, *others)}))["handoff"]

    assert "Not measured: descriptors per connection, memory per connection" in text
    assert "Held connections: too few descriptors." in text
    assert "An open connection takes" not in text
    assert "Failed requests" not in text


def test_a_subject_without_figures_is_reported_as_not_measured(sample: Comparison) -> None:
    nothing = Subject(name="handoff", scheme="handoff", mode="", notes=("it did not start",))
    paragraphs = evaluation.paragraphs(sample.model_copy(update={"subjects": (nothing,)}))

    assert paragraphs == {"handoff": "Nothing was measured. It did not start."}


def test_a_limit_of_the_load_generator_is_reported_in_the_paragraph(sample: Comparison) -> None:
    first, *others = sample.subjects
    load = first.loads["keepalive"].model_copy(update={"limited": True})
    limited = first.model_copy(update={"loads": {**first.loads, "keepalive": load}})
    text = evaluation.paragraphs(sample.model_copy(update={"subjects": (limited, *others)}))[
        first.name
    ]

    assert re.search(r"[Aa]t least \S+ requests/s over keep-alive connections", text)
    assert "Under keep-alive load the load generator was the limit" in text


def test_failed_requests_and_a_rate_that_was_not_reached_are_reported(
    sample: Comparison,
) -> None:
    first, *others = sample.subjects
    failing = failed(first, "connect", 5000)
    slow = first.loads["rate"].model_copy(update={"requests_per_s": Spread(values=(4000.0,))})
    broken = failing.model_copy(update={"loads": {**failing.loads, "rate": slow}})
    text = evaluation.paragraphs(sample.model_copy(update={"subjects": (broken, *others)}))[
        first.name
    ]

    assert "of the requests failed (reset 5,000)" in text
    assert "It reached only 50 % of the constant rate" in text


def test_a_single_subject_is_described_and_not_compared(sample: Comparison) -> None:
    text = evaluation.paragraphs(sample.model_copy(update={"subjects": sample.subjects[:1]}))

    assert "the best" not in text["ports/http"]
    assert "Choose" not in text["ports/http"]
    assert "An open connection takes 3 descriptors" in text["ports/http"]


def test_a_result_with_only_zeros_can_be_evaluated(sample: Comparison) -> None:
    once = Spread(values=(1.0,))
    load = LoadResult(
        requests=0, errors={}, requests_per_s=Spread(values=(0.0,)), p50_s=once, p90_s=once,
        p99_s=once, p999_s=once, worst_s=1.0, histogram={}, cpu_us={}, limited=False,
    )  # fmt: skip
    held = HeldResult(connections=1, fds={}, memory={}, ephemeral_ports=0.0, curve=())
    least = Subject(name="a", scheme="", mode="", loads={"keepalive": load}, held=held)
    most = sample.subjects[0]
    paragraphs = evaluation.paragraphs(sample.model_copy(update={"subjects": (least, most)}))

    assert paragraphs["a"].startswith("0 requests/s over keep-alive connections")


def failed(subject: Subject, kind: LoadKind, many: int) -> Subject:
    load = subject.loads[kind].model_copy(update={"errors": {"reset": many}})
    return subject.model_copy(update={"loads": {**subject.loads, kind: load}})
