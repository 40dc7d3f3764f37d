"""The first picture of the page: a bar for each cost, and a sentence for each subject.

Plain HTML: it is there before any script has run, can be selected and printed, and becomes one
column on a phone. A bar has the colour of its subject, and is divided by role where that is
known. No I/O, no clock.
"""

from collections.abc import Iterator
from html import escape
from typing import Final

from penstock_supervisor.compare.charts import costs
from penstock_supervisor.compare.charts.costs import Bar, Column
from penstock_supervisor.compare.charts.theme import OPACITIES, subject_colours
from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.figures import roles
from penstock_supervisor.compare.report.result import Comparison

_SEEN: Final = 0.02
"""The least share of a bar that an eye finds."""


def render(comparison: Comparison) -> Iterator[str]:
    """Nothing if nothing was measured."""
    rows = evaluation.rows(comparison)
    picture = costs.picture(comparison, rows)
    if not picture.columns:
        return
    said = sentences.sentences(comparison, rows)
    colours = subject_colours(comparison)
    headline = sentences.headline(comparison, rows)
    if headline:
        yield f'<p class="headline">{escape(headline)}</p>'
    yield f'<section class="costs" style="--columns:{len(picture.columns)}">'
    yield f'<div class="titles"><span class="rule">{escape(costs.RULE)}</span>'
    yield from (f"<span>{_title(column)}</span>" for column in picture.columns)
    yield "</div>"
    for position, number in enumerate(picture.order):
        name = comparison.subjects[number].name
        yield f'<article class="subject" style="--colour:{colours[name]}">'
        yield f"<h3>{escape(name)}</h3>"
        yield from (_bar(column, column.bars[position]) for column in picture.columns)
        yield f"<p>{escape(said[name])}</p></article>"
    yield "</section>"
    drawn = [
        role
        for one in picture.columns
        for bar in one.bars
        if bar
        for role, share in bar.parts
        if share >= _SEEN
    ]
    if len(set(drawn)) > 1:
        yield '<ul class="legend">'
        for role in roles(drawn):
            opacity = OPACITIES.get(role, 0.8)
            yield (
                f'<li class="chip" style="--colour:var(--ink);--opacity:{opacity:g}">'
                f"{escape(role)}</li>"
            )
        yield "</ul>"


def _title(column: Column) -> str:
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    return f"{escape(column.title)}{unit}"


def _bar(column: Column, bar: Bar | None) -> str:
    title = escape(column.title)
    if bar is None:
        return f'<div class="cost missing" data-title="{title}">not measured</div>'
    parts = "".join(
        f'<i style="width:{share * 100:.2f}%;opacity:{OPACITIES.get(role, 0.8):g}" '
        f'title="{escape(role)} {share * 100:.0f} %"></i>'
        for role, share in bar.parts
    ) or '<i style="width:100%"></i>'  # fmt: skip
    best = " best" if bar.best else ""
    return (
        f'<div class="cost{best}" data-title="{title}">'
        f'<span class="bar" style="--length:{bar.length:.4f}">{parts}</span>'
        f"<b>{escape(bar.text)}</b></div>"
    )
