"""The first picture as a table in Markdown: for README.md, beside the picture itself.

The figures, their order and who stands out are those of the picture, and nothing is chosen here.
No I/O, no clock.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from penstock_supervisor.compare.charts import costs
from penstock_supervisor.compare.charts.costs import Bar, Column
from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.result import Comparison

_MISSING: Final = "-"


def render(comparison: Comparison) -> Iterator[str]:
    """Line by line. Nothing if nothing was measured."""
    picture = costs.picture(comparison, evaluation.rows(comparison))
    if not picture.columns:
        return
    facts = (*sentences.origin(comparison), sentences.circumstances(comparison))
    yield _escaped(f"{'; '.join(facts)}:")
    yield ""
    yield _row(["", *map(_title, picture.columns)])
    yield _row(["---", *("---:" for _ in picture.columns)])
    for position, number in enumerate(picture.order):
        name = comparison.subjects[number].name
        yield _row([name, *(_text(column.bars[position]) for column in picture.columns)])


def _title(column: Column) -> str:
    return f"{column.title}, {column.unit}" if column.unit else column.title


def _text(bar: Bar | None) -> str:
    if bar is None:
        return _MISSING
    return f"**{bar.text}**" if bar.best else bar.text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |".replace("|  |", "| |", 1)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
