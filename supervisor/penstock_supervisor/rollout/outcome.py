"""What is so after the end of a roll-out, in words: which version serves, and where.

A roll-out that fails goes back, as far as there is something to go back to: a configuration, or a
release in a directory of its own. The files that a deploy has overwritten are gone. So a worker
that has them already keeps them, one that has not been reached keeps what it has loaded, and both
are named. Who reads the result has to know what to put right.

Owns these words. Must not know how the facts are found (`rollout_driver`). No I/O, no clock.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.rollout.rollout_state import Result

_MOST_NAMES: Final = 8
"""Of workers, in one sentence."""


class Remains(NamedTuple):
    """What a roll-out that failed has left, when it has gone back as far as it can. By worker."""

    untouched: Sequence[Slot] = ()
    """Still have the process that they had before."""
    renewed: Sequence[Slot] = ()
    """Have a new process, and nothing but its files tells it from the one before."""
    started: Sequence[Slot] = ()
    """Of a deploy of code: not reached, but their process ended and was started again."""
    stuck: Sequence[Slot] = ()
    """Could not be brought back to the configuration before."""
    down: Sequence[str] = ()
    """Services none of whose workers is ready."""


def leftover(remains: Remains) -> str:
    """Why it cannot be said that the old version serves; empty: it can."""
    said = []
    if remains.untouched and (remains.renewed or remains.started):
        runs = _one_or_many(remains.untouched, "runs", "run")
        said.append(f"{_names(remains.untouched)} still {runs} the version before")
    if remains.renewed:
        what = _one_or_many(
            remains.renewed,
            "runs the new one and cannot be put back: its files are the new ones",
            "run the new one and cannot be put back: their files are the new ones",
        )
        said.append(f"{_names(remains.renewed)} already {what}")
    if remains.started:
        ended = _one_or_many(
            remains.started,
            "has ended meanwhile, and was started again with the new files",
            "have ended meanwhile, and were started again with the new files",
        )
        said.append(f"{_names(remains.started)} {ended}")
    if remains.stuck:
        said.append(f"{_names(remains.stuck)} stayed on the new version")
    if remains.down:
        said.append(f"no worker of {', '.join(remains.down)} is ready")
    return "; ".join(said)


class Done(NamedTuple):
    """What a roll-out has done."""

    is_reload: bool
    replaced: Sequence[Slot] = ()
    """On the way to the new version."""
    put_back: bool = False
    """Something was brought back to the version before."""
    is_touched: bool = True
    """The process of some worker was to be another one."""
    is_changed: bool = False
    """The configuration is another one than before."""


def outcome(result: Result | None, done: Done) -> str:
    """What a result means, if nothing is left over; empty: its name says it all."""
    if result is Result.SUCCEEDED:
        return _success(done)
    if result is Result.REFUSED:
        return "nothing is changed"
    if result not in (Result.ABORTED, Result.ROLLED_BACK):
        return ""
    if done.put_back:
        what = "configuration before is in force" if done.is_changed else "release before serves"
        return f"the {what} again"
    return "the old version serves" if done.is_touched else "nothing is changed"


def _success(done: Done) -> str:
    if not done.is_reload:
        is_ = _one_or_many(done.replaced, "is", "are")
        return f"{_names(done.replaced)} {is_} replaced" if done.replaced else "nothing was to do"
    if done.replaced:
        return "the new version serves"
    return "the configuration is in force" if done.is_changed else "nothing was to do"


def _names(slots: Sequence[Slot]) -> str:
    shown = [f"{service}/{number}" for service, number in slots[:_MOST_NAMES]]
    more = f" and {len(slots) - len(shown)} more" if len(slots) > len(shown) else ""
    return ", ".join(shown) + more


def _one_or_many(slots: Sequence[Slot], one: str, many: str) -> str:
    return one if len(slots) == 1 else many
