"""The table fits the terminal, shows every figure, and marks the best without colours too.

Covers `compare/report/units`.
"""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from penstock_supervisor.compare.report import table
from penstock_supervisor.compare.report.result import Comparison, Subject
from penstock_supervisor.compare.report.units import format_share, format_times, format_value, scale


def written(
    comparison: Comparison,
    width: int,
    baseline: Comparison | None = None,
    colours: bool = False,
) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    console.print(table.render(comparison, baseline, width))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_all_schemes_fit_side_by_side_in_eighty_columns(sample: Comparison, width: int) -> None:
    lines = written(sample, width).splitlines()
    head = next(line for line in lines if "handoff" in line)

    assert head.split() == [subject.name for subject in sample.subjects]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("others", [0, 1, 9])
def test_no_figure_is_cut_however_many_columns_there_are(
    compared: Callable[..., Comparison], width: int, others: int
) -> None:
    comparison = compared(others=others)
    text = written(comparison, max(width, 40))

    assert "…" not in text
    for subject in comparison.subjects:
        assert subject.name in text
    assert text.count("±") >= 15 * len(comparison.subjects)


def test_the_best_of_a_row_and_its_equals_are_marked(sample: Comparison) -> None:
    line = next(one for one in written(sample, 100).splitlines() if "descriptors each" in one)

    assert line.split()[2:] == ["3", "3", "*1", "*1", "*1"]


def test_colours_are_used_on_a_terminal_only(sample: Comparison) -> None:
    assert "\x1b" not in written(sample, 80)
    assert "\x1b" in written(sample, 80, colours=True)


def test_a_missing_value_is_a_dash_and_an_infinite_one_is_never(sample: Comparison) -> None:
    first, *others = sample.subjects
    bare = first.model_copy(update={"held": None})
    text = written(sample.model_copy(update={"subjects": (bare, *others)}), 100)
    line = next(one for one in text.splitlines() if "memory each" in one)

    assert line.split()[3] == "-"
    assert "- not measured" in text
    assert "never" in text


def test_a_limit_of_the_load_generator_shows_in_the_row(sample: Comparison) -> None:
    first, *others = sample.subjects
    load = first.loads["keepalive"].model_copy(update={"limited": True})
    limited = first.model_copy(update={"loads": {**first.loads, "keepalive": load}})
    text = written(sample.model_copy(update={"subjects": (limited, *others)}), 100)

    assert " ≥18" in text
    assert "≥ the load generator was the limit" in text


def test_failed_requests_and_notes_on_skipped_schemes_are_shown(sample: Comparison) -> None:
    first, *others = sample.subjects
    load = first.loads["keepalive"].model_copy(update={"errors": {"reset": 90_000}})
    failing = first.model_copy(update={"loads": {**first.loads, "keepalive": load}})
    text = written(
        sample.model_copy(
            update={"subjects": (failing, *others), "notes": ("udp is not compared: no port",)}
        ),
        100,
    )

    assert "! too many requests failed" in text
    assert "udp is not compared: no port" in text


def test_an_interrupted_run_is_shown_as_far_as_it_was_measured(sample: Comparison) -> None:
    nothing = sample.model_copy(update={"subjects": (), "interrupted": True})
    started = Subject(name="handoff", scheme="handoff", mode="")
    some = sample.model_copy(update={"subjects": (started,), "interrupted": True, "quick": True})

    assert "Nothing was measured." in written(nothing, 80)
    assert "Interrupted" in written(some, 80)


def test_a_baseline_has_a_table_of_its_own(compared: Callable[..., Comparison]) -> None:
    before = compared(seed=2)
    slower = before.model_copy(update={"workers": 2})
    text = written(compared(), 80, slower)

    assert "Against the baseline of 2026-11-21 07:12:44Z, penstock 0.1.0" in text
    assert "Workers: 2, now 4." in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("quantity", "values", "texts"),
    [
        ("time", [0.0004, 0.0021, 0.0034], ["0.40 ms", "2.10 ms", "3.40 ms"]),
        ("time", [0.00041], ["410 µs"]),
        ("time", [1.5, 12.0], ["1.50 s", "12.00 s"]),
        ("time", [0.0], ["0 s"]),
        ("rate", [5970.0, 12_340.0], ["6.0k", "12.3k"]),
        ("rate", [5970.0], ["5,970"]),
        ("rate", [1_234_000.0], ["1.23M"]),
        ("memory", [9318.0], ["9.10 KiB"]),
        ("memory", [3.2e6], ["3.05 MiB"]),
        ("number", [3.0, 1.0], ["3", "1"]),
        ("number", [3.004, 1.0], ["3.00", "1.00"]),
        ("cpu", [26.4, 0.4], ["26.4 µs", "0.4 µs"]),
        ("ratio", [0.91], ["0.910"]),
        ("time", [float("inf"), 0.4], ["never", "400 ms"]),
    ],
)
def test_a_row_has_one_unit_and_three_significant_digits(
    quantity: str, values: list[float], texts: list[str]
) -> None:
    unit = scale(quantity, values)  # type: ignore[arg-type]

    assert [unit.text(value) for value in values] == texts


def test_shares_ratios_and_rates_are_formatted_and_rounded() -> None:
    assert (format_share(0.25), format_share(0.001), format_share(0.0)) == ("25 %", "<1 %", "0 %")
    assert (format_times(3.0), format_times(1.84), format_times(41.2)) == (
        "3 times",
        "1.8 times",
        "41 times",
    )
    assert format_value("rate", 9_999_999.0) == "10.0M"
