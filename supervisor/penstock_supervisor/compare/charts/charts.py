"""What is drawn on the page, in order: Plotly figures as plain values.

Plain values and not Plotly's own classes, which take a second to be imported and are not
there without the extra; a test has Plotly judge every panel. No I/O, no clock.
"""

from collections.abc import Iterator

from penstock_supervisor.compare.charts import bars, curves
from penstock_supervisor.compare.charts.theme import Panel, colours
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import sections
from penstock_supervisor.compare.report.result import LOADS, Comparison


def panels(comparison: Comparison) -> Iterator[Panel]:
    """In the order of the page."""
    paint = colours(comparison)
    rows = evaluation.rows(comparison)
    for section in sections(comparison):
        if section in LOADS:
            yield from curves.percentiles(comparison, section, paint)
        if section == "split":
            # Each of these says its fairness itself.
            yield from bars.splits(comparison, paint)
            continue
        for row in rows:
            if row.figure.section == section and not row.figure.role:
                yield bars.bars(comparison, row, rows, paint)
        if section == "held":
            yield from curves.descriptors(comparison, paint)
