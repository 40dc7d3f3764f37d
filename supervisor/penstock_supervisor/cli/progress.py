"""Shows a roll-out while it runs: a line for each worker, changed in place, or lines one by one.

On a terminal each worker has a line that changes, as far as the window is high; elsewhere, as in
the log of a pipeline, a line is written whenever something has happened to a worker. The words are
those of `control.rollouts`.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from penstock_supervisor.control import rollouts

if TYPE_CHECKING:
    from rich.table import Table

_OTHER_LINES: Final = 4
"""Of the window, for all but the workers."""
_STYLES: Final = {"done": "green", "failed": "red", "waiting": "dim", "withdrawn": "dim"}
"""By state; all others are under way."""

Step = Mapping[str, Any]


class Progress(Protocol):
    def show(self, rollout: rollouts.Rollout) -> None:
        """It is like this now."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """A line for each change."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int], str] = {}
        """By worker and number of its step, as it may have several: the last words."""
        self._why = ""

    def show(self, rollout: rollouts.Rollout) -> None:
        if (why := rollouts.why_it_waits(rollout)) and why != self._why:
            self._why = why
            click.echo(why)
        seen: Counter[str] = Counter()
        for step in rollout["steps"]:
            name, words = rollouts.step_name(step), rollouts.step_words(step)
            seen[name] += 1
            key = name, seen[name]
            if self._said.get(key) != words and step["state"] != "waiting":
                self._said[key] = words
                click.echo(f"{name} {words}")

    def close(self) -> None:
        pass


class Nothing:
    """For who reads the result only."""

    def show(self, rollout: rollouts.Rollout) -> None:
        pass

    def close(self) -> None:
        pass


class InPlace:
    """A line for each worker, which changes."""

    def __init__(self) -> None:
        # Late: no other command needs them.
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False)
        self._live = Live(console=console, auto_refresh=False)
        self._height = console.size.height

    def show(self, rollout: rollouts.Rollout) -> None:
        self._live.start()
        self._live.update(_table(rollout, self._height - _OTHER_LINES), refresh=True)

    def close(self) -> None:
        self._live.stop()


def for_stdout(*, as_json: bool) -> Progress:
    """What is fit for where our output goes."""
    if as_json:
        return Nothing()
    if not sys.stdout.isatty():
        return Lines()
    from rich.console import Console

    return Lines() if Console().is_dumb_terminal else InPlace()


def visible(steps: Sequence[Step], most: int) -> tuple[list[Step], int]:
    """The steps that are shown in `most` lines, in their order, and the number of the others.

    Those that are under way or have failed come first, then the next ones, then the last ones that
    are done.
    """
    if len(steps) <= most:
        return list(steps), 0
    most = max(1, most - 1)
    places = range(len(steps))
    ranked = [
        *(at for at in places if steps[at]["state"] not in ("waiting", "done")),
        *(at for at in places if steps[at]["state"] == "waiting"),
        *(at for at in reversed(places) if steps[at]["state"] == "done"),
    ]
    chosen = sorted(ranked[:most])
    return [steps[at] for at in chosen], len(steps) - len(chosen)


def _table(rollout: rollouts.Rollout, most: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    steps, hidden = visible(rollout["steps"], most)
    for step in steps:
        style = _STYLES.get(step["state"], "yellow")
        table.add_row(rollouts.step_name(step), Text(rollouts.step_words(step), style))
    if hidden:
        table.add_row("", Text(f"and {hidden} more", "dim"))
    if not rollout["result"]:
        counted = "" if rollout["requests"] is None else f"; {rollouts.requests(rollout)}"
        table.add_row("", Text(f"{rollouts.heading(rollout)}{counted}", "dim"))
    return table
