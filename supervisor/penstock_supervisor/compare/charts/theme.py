"""What all charts have in common: a panel, its colours, and its axes.

A subject has one colour everywhere, and a role has one depth of that colour. Colours that
depend on the reader's light or dark page are names ("--ink") that the page's script fills
in. No I/O, no clock.
"""

from typing import Any, Final, NamedTuple

from penstock_supervisor.compare.report.result import Comparison

MOST: Final = 22
"""Characters of a name beside a bar; on a phone the bar needs its room too."""

Figure = dict[str, Any]
"""As Plotly takes it: `data` and `layout`, or a part of them."""

_COLOURS: Final = {
    "ports/http": "#3f7fd6",
    "ports/tcp": "#21a3ad",
    "handoff": "#e8833a",
    "shared": "#4fa64f",
    "reuseport": "#a566d4",
}
_OTHERS: Final = ("#8b95a5", "#d1586b", "#b3983a", "#6b78c9", "#a07a5f", "#5f9e8f")
"""Addresses that somebody else runs."""
ROLE_DEPTHS: Final = {"proxy": 1.0, "workers": 0.55, "supervisor": 0.25, "server": 0.8}
ROLE_DASHES: Final = {"proxy": "solid", "workers": "dash", "supervisor": "dot", "server": "solid"}


class Panel(NamedTuple):
    """One chart with its heading."""

    name: str
    """Of its element, unique on the page."""
    section: str
    title: str
    hint: str
    """Unit, and which way is better."""
    figure: Figure
    wide: bool = False
    """Takes the whole width."""
    roles: tuple[str, ...] = ()
    """Whose shares are told apart by depth."""


def colours(comparison: Comparison) -> dict[str, str]:
    """Of each subject, the same in every comparison for what we run."""
    others = [one.name for one in comparison.subjects if one.name not in _COLOURS]
    found = dict(_COLOURS)
    found |= {name: _OTHERS[at % len(_OTHERS)] for at, name in enumerate(others)}
    return {one.name: found[one.name] for one in comparison.subjects}


def axes(x: Figure, y: Figure, height: int) -> Figure:
    axis = {"automargin": True, "fixedrange": True, "zeroline": False, "ticks": ""}
    return {
        "height": height,
        "margin": {"l": 8, "r": 14, "t": 10, "b": 8},
        "hovermode": "closest",
        "xaxis": axis | x,
        "yaxis": axis | y,
    }


def plain(text: str) -> str:
    """Plotly reads some HTML in labels; a name is text and nothing else."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shortened(name: str) -> str:
    """A long name by its end, which is where paths and addresses differ."""
    return name if len(name) <= MOST else f"…{name[1 - MOST :]}"


def faded(colour: str, depth: float) -> str:
    """A colour of which the paper shows through."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{depth:g})"
