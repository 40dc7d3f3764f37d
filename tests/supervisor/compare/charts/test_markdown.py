"""The table of README.md has the figures of the picture, its order and who stands out."""

from collections.abc import Callable

from penstock_supervisor.compare.charts import costs, markdown
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.result import Comparison


def test_the_table_has_what_the_picture_has(compared: Callable[..., Comparison]) -> None:
    comparison = compared(others=1, rounds=5)
    picture = costs.picture(comparison, evaluation.rows(comparison))
    facts, empty, head, rule, *lines = markdown.render(comparison)

    assert facts.startswith("2026-11-21; penstock 0.1.0, compiled; AMD EPYC 7B13, 2 cores; ")
    assert empty == ""
    assert [cell.split(",")[0].strip() for cell in head.split("|")[2:-1]] == [
        column.title.split(",")[0] for column in picture.columns
    ]
    assert rule.count("|") == head.count("|")
    for position, line in enumerate(lines):
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        assert name == comparison.subjects[picture.order[position]].name
        for cell, column in zip(cells, picture.columns, strict=True):
            bar = column.bars[position]
            assert cell.strip("*") == (bar.text if bar else "-")
            assert cell.startswith("**") == bool(bar and bar.best)


def test_a_name_with_a_bar_stays_in_its_cell(sample: Comparison) -> None:
    odd = sample.subjects[0].model_copy(update={"name": "a|b"})
    text = "\n".join(markdown.render(sample.model_copy(update={"subjects": (odd,)})))
    assert "| a\\|b |" in text


def test_nothing_is_written_of_nothing(sample: Comparison) -> None:
    assert list(markdown.render(sample.model_copy(update={"subjects": ()}))) == []
