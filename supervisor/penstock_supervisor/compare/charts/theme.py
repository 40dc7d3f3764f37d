"""What all charts have in common: the panel, its colours and its axes.

A subject has the same colour everywhere, and a role has one opacity of that colour. Colours that
depend on the reader's light or dark theme are names ("--ink"), which the page's script replaces.
No I/O, no clock.
"""

from typing import Any, Final, NamedTuple

from penstock_supervisor.compare.report.result import Comparison

MAX_NAME_LENGTH: Final = 22
"""Characters of a name beside a bar. On a phone there is no space for more."""

Plot = dict[str, Any]
"""What Plotly calls a figure (`data` and `layout`), or a part of one."""

_COLOURS: Final = {
    "ports/http": "#3f7fd6",
    "ports/http/tcp": "#7bb2ee",
    "ports/tcp": "#21a3ad",
    "handoff": "#e8833a",
    "shared": "#4fa64f",
    "reuseport": "#a566d4",
}
_OTHERS: Final = ("#8b95a5", "#d1586b", "#b3983a", "#6b78c9", "#a07a5f", "#5f9e8f")
"""For addresses that somebody else serves."""
OPACITIES: Final = {"proxy": 1.0, "workers": 0.55, "supervisor": 0.25, "server": 0.8}
ROLE_DASHES: Final = {"proxy": "solid", "workers": "dash", "supervisor": "dot", "server": "solid"}


class Panel(NamedTuple):
    """One chart with its heading."""

    name: str
    """The id of its element, unique on the page."""
    section: str
    title: str
    hint: str
    """Unit, and which way is better."""
    plot: Plot
    wide: bool = False
    """Takes the whole width."""
    roles: tuple[str, ...] = ()
    """The roles that its bars are divided by."""


def subject_colours(comparison: Comparison) -> dict[str, str]:
    """The colour of each subject. A scheme has the same one in every comparison."""
    others = [one.name for one in comparison.subjects if one.name not in _COLOURS]
    by_name = dict(_COLOURS)
    by_name |= {name: _OTHERS[n % len(_OTHERS)] for n, name in enumerate(others)}
    return {one.name: by_name[one.name] for one in comparison.subjects}


def axes(x: Plot, y: Plot, height: int) -> Plot:
    axis = {"automargin": True, "fixedrange": True, "zeroline": False, "ticks": ""}
    return {
        "height": height,
        "margin": {"l": 8, "r": 14, "t": 10, "b": 8},
        "hovermode": "closest",
        "xaxis": axis | x,
        "yaxis": axis | y,
    }


def escaped(text: str) -> str:
    """Plotly interprets some HTML in labels, so names are escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shortened(name: str) -> str:
    """The end of a long name, because paths and addresses differ there."""
    return name if len(name) <= MAX_NAME_LENGTH else f"…{name[1 - MAX_NAME_LENGTH :]}"


def with_opacity(colour: str, opacity: float) -> str:
    """The colour as CSS, partly transparent."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
