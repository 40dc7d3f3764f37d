"""Line charts: the distribution of latencies, and descriptors against connections.

A latency curve has the share of requests on its x axis, scaled by nines, and a logarithmic y
axis. So the slowest one per cent, which mean and median hide, is most of the chart. No I/O, no
clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import log10
from typing import Final

from penstock_supervisor.compare.charts.theme import ROLE_DASHES, Panel, Plot, axes, escaped
from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.figures import roles, throughput_with, worker_counts
from penstock_supervisor.compare.report.result import Comparison, LoadResult

_NINES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_POINTS_PER_NINE: Final = 40
"""Points of a latency curve."""
_FIRST_POINT: Final = 3
"""The curve begins where about a seventh of all requests are answered; before, it is flat."""


def percentiles(
    comparison: Comparison, section: str, colours: Mapping[str, str]
) -> Iterator[Panel]:
    lines: list[Plot] = []
    for subject in comparison.subjects:
        load = next((one for kind, one in subject.loads.items() if kind == section), None)
        if load and (curve := _curve(load)):
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": escaped(subject.name),
                    "x": [nines for nines, _ in curve],
                    "y": [seconds * 1e3 for _, seconds in curve],
                    "line": {"color": colours[subject.name], "width": 2},
                    "customdata": [_percent(nines) for nines, _ in curve],
                    "hovertemplate": "%{fullData.name}: %{customdata} within %{y:.3~g} ms"
                    "<extra></extra>",
                    "showlegend": False,
                }
            )
    if not lines:
        return
    largest = max(line["x"][-1] for line in lines)
    ticks = [q for q in _NINES if -log10(1 - q) <= largest + 0.01]
    low = min(min(line["y"]) for line in lines)
    high = max(max(line["y"]) for line in lines)
    layout = axes(
        {
            "title": {"text": "Share of the requests, %", "standoff": 8},
            "tickvals": [-log10(1 - q) for q in ticks],
            "ticktext": [f"{q * 100:.7g}" for q in ticks],
            "tickangle": 0,
            "range": [_FIRST_POINT / _POINTS_PER_NINE, largest * 1.02],
        },
        {
            "type": "log",
            "title": {"text": "Answered within, ms", "standoff": 8},
            "tickvals": (values := _log_ticks(low, high)),
            "ticktext": [f"{value:g}" for value in values],
            "range": [log10(low * 0.8), log10(high * 1.25)],
        },
        360,
    )
    yield Panel(f"curve-{section}", section, "Latency distribution", "log scale, lower is better",
                {"data": lines, "layout": layout}, wide=True)  # fmt: skip


def _curve(load: LoadResult) -> list[tuple[float, float]]:
    """Points (nines, seconds), up to the second-slowest request."""
    buckets = sorted(load.histogram)
    sums = list(accumulate(load.histogram[bucket] for bucket in buckets))
    if not sums or sums[-1] < 2:
        return []
    total = sums[-1]
    points: list[tuple[float, float]] = []
    position = 0
    for step in range(_FIRST_POINT, int(log10(total) * _POINTS_PER_NINE) + 1):
        nines = step / _POINTS_PER_NINE
        while sums[position] < total * (1 - 10**-nines):
            position += 1
        points.append((nines, histogram.upper(buckets[position])))
    return points


def _percent(nines: float) -> str:
    part = (1 - 10**-nines) * 100
    return f"{part:.{max(0, int(nines) - 1) + (1 if nines >= 1 else 0)}f} %"


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or the decades alone when there are many."""
    decades = range(int(log10(low)) - 2, int(log10(high)) + 2)
    marks = (1,) if high / low > 1e3 else (1, 2, 5)
    values = [mark * 10.0**decade for decade in decades for mark in marks]
    return [value for value in values if low * 0.8 <= value <= high * 1.25]


def scaling(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Panel]:
    """Throughput against the number of workers: a straight line is a scheme that scales."""
    counts = worker_counts(comparison)
    lines: list[Plot] = []
    for subject in comparison.subjects:
        cells = [(n, throughput_with(subject, n, comparison)) for n in counts]
        points = [(n, cell) for n, cell in cells if cell]
        if not points:
            continue
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escaped(subject.name),
                "x": [n for n, _ in points],
                "y": [cell.value for _, cell in points],
                "line": {"color": colours[subject.name], "width": 2},
                "marker": {"size": 7},
                "hovertemplate": "%{fullData.name}, %{x} workers: %{y:,.0f}/s<extra></extra>",
                "showlegend": False,
            }
        )
    if not lines:
        return
    layout = axes(
        {
            "title": {"text": "Workers", "standoff": 8},
            "tickvals": list(counts),
            "range": [0, counts[-1] * 1.06],
        },
        {"title": {"text": "Requests/s", "standoff": 8}, "rangemode": "tozero"},
        320,
    )
    yield Panel("scaling", "scaling", "Throughput by workers", "more is better",
                {"data": lines, "layout": layout}, wide=True)  # fmt: skip


def descriptors(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Panel]:
    """One panel for each subject. All have the same axes, so that slopes can be compared."""
    held = {one.name: one.held for one in comparison.subjects if one.held and one.held.curve}
    if not held:
        return
    counts = [fds for one in held.values() for _, parts in one.curve for fds in parts.values()]
    largest = max(n for one in held.values() for n, _ in one.curve)
    for number, (name, one) in enumerate(held.items()):
        shown_roles = roles([role for _, parts in one.curve for role in parts])
        lines, notes = [], []
        for role in shown_roles:
            points = [(n, parts[role]) for n, parts in one.curve if role in parts]
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": role,
                    "x": [n for n, _ in points],
                    "y": [fds for _, fds in points],
                    "line": {
                        "color": colours[name],
                        "width": 2,
                        "dash": ROLE_DASHES.get(role, "solid"),
                    },
                    "marker": {"size": 5},
                    "hovertemplate": f"%{{x:,}} connections: {role} %{{y:,}}<extra></extra>",
                    "showlegend": False,
                }
            )
            notes.append((role, points[-1][0], points[-1][1]))
        layout = axes(
            {
                "title": {"text": "Connections", "standoff": 6},
                "range": [0, largest * 1.42],
                "nticks": 4,
            },
            {"range": [-0.04 * max(counts), max(counts) * 1.12], "nticks": 5},
            230,
        )
        layout["annotations"] = _annotations(notes, max(counts) * 0.1)
        yield Panel(f"fds-{number}", "held", name, "descriptors against connections",
                    {"data": lines, "layout": layout})  # fmt: skip


def _annotations(notes: Sequence[tuple[str, float, float]], distance: float) -> list[Plot]:
    """The names of lines at their ends, moved apart so that none covers another."""
    annotations: list[Plot] = []
    last = float("-inf")
    for text, x, y in sorted(notes, key=lambda note: note[2]):
        last = max(y, last + distance)
        annotations.append(
            {
                "text": escaped(text),
                "x": x,
                "y": last,
                "xanchor": "left",
                "xshift": 6,
                "showarrow": False,
                "font": {"size": 12, "color": "--ink"},
            }
        )
    return annotations
