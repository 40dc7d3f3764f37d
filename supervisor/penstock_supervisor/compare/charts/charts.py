"""All charts of the page in order, as plain values in the format of Plotly.

Plotly's own classes are not used, because their import takes a second and needs the extra
`report`. A test has Plotly validate every panel. No I/O, no clock.
"""

from collections.abc import Iterator

from penstock_supervisor.compare.charts import bars, curves
from penstock_supervisor.compare.charts.theme import Panel, subject_colours
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import sections
from penstock_supervisor.compare.report.result import LOADS, Comparison


def panels(comparison: Comparison) -> Iterator[Panel]:
    """In the order of the page."""
    colours = subject_colours(comparison)
    rows = evaluation.rows(comparison)
    for section in sections(comparison):
        if section in LOADS:
            yield from curves.percentiles(comparison, section, colours)
        if section == "scaling":
            yield from curves.scaling(comparison, colours)
            continue
        if section == "split":
            # Each of these panels has its fairness in its title.
            yield from bars.splits(comparison, colours)
            continue
        for row in rows:
            if row.figure.section == section and not row.figure.role:
                yield bars.bars(comparison, row, rows, colours)
        if section == "held":
            yield from curves.descriptors(comparison, colours)
