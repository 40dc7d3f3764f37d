"""Roll-outs as JSON, and their words for people: `reload`, `status`, the page.

Owns the names of the fields that people's scripts read, and the word for each action and state.
The words are made from the JSON, so that the command line can make them as well. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from json import dumps
from typing import Any, Final
from zlib import crc32

from penstock_supervisor.children.reported_text import one_line
from penstock_supervisor.rollout.request_totals import in_words
from penstock_supervisor.snapshot import RolloutView

Rollout = Mapping[str, Any]
"""What `describe` makes."""

SUCCEEDED: Final = "succeeded"
REFUSED: Final = "refused"
_DONE: Final = {
    "replace": "replaced",
    "add": "added",
    "remove": "removed",
    "roll_back": "rolled back",
}
"""By action: the word for what was done."""
_CHANGES_BY_ITSELF: Final = ("duration_s", "requests", "failed")
"""Fields that are another number at every look."""


def describe(view: RolloutView) -> dict[str, Any]:
    """One roll-out, ready for JSON. Times are in seconds."""
    return {
        **view._asdict(),
        "changes": list(view.changes),
        "uncounted": list(view.uncounted),
        "uncounted_services": list(view.uncounted_services),
        "verdicts": list(view.verdicts),
        "steps": [step._asdict() for step in view.steps],
        "started_at": round(view.started_at, 3),
        "duration_s": round(view.duration_s, 3),
    }


def version(view: RolloutView) -> int:
    """Another number when anything has changed, but for what changes with time alone."""
    fields = {key: value for key, value in describe(view).items() if key not in _CHANGES_BY_ITSELF}
    return crc32(dumps(fields, sort_keys=True).encode())


def heading(rollout: Rollout) -> str:
    """One line: `roll-out 3: rolling, 1 of 4 workers done, 12 s so far`."""
    name = f"roll-out {rollout['number']}"
    steps = rollout["steps"]
    took = f"{rollout['duration_s']:.0f} s"
    if rollout["result"]:
        ended = _time(rollout["started_at"] + rollout["duration_s"])
        return f"{name} {_word(rollout)} at {ended}, took {took}{_why(rollout)}"
    if why := why_it_waits(rollout):
        return f"{why}, {took}"
    done = sum(step["state"] == "done" for step in steps)
    what = f"{done} of {len(steps)} workers done, " if steps else ""
    return f"{name}: {_spaced(rollout['state'])}, {what}{took} so far"


def why_it_waits(rollout: Rollout) -> str:
    """`roll-out 3 waits: roll-out 2 has to end first`, or empty."""
    is_waiting = rollout["state"] == "waiting" and rollout["reason"]
    return f"roll-out {rollout['number']} waits{reason(rollout)}" if is_waiting else ""


def outcome(rollout: Rollout) -> str:
    """How it ended, why, and what is so now: `roll-out 3 succeeded: the new version serves`, or
    `roll-out 4 aborted: web/0: exited with status 1; the old version serves`."""
    text = f"roll-out {rollout['number']} {_spaced(rollout['result'])}"
    if rollout["result"] == SUCCEEDED and rollout["outcome"]:
        return f"{text}: {rollout['outcome']}"
    by = rollout["superseded_by"]
    return f"{text}{'' if by is None else f' by roll-out {by}'}{_why(rollout)}"


def _why(rollout: Rollout) -> str:
    """Of one that has not succeeded: the reason, and what is so now."""
    if rollout["result"] == SUCCEEDED:
        return ""
    now = rollout["outcome"]
    why = reason(rollout)
    return f"{why}{'; ' if why else ': '}{one_line(now)}" if now else why


def reason(of: Mapping[str, Any]) -> str:
    """Of a roll-out or a step: `: web/0 was not ready in time`, or nothing."""
    # By what it was superseded is said already.
    is_new = of["reason"] and of.get("result") != "superseded"
    return f": {one_line(of['reason'])}" if is_new else ""


def requests(rollout: Rollout) -> str:
    """`requests 1203, failed 0`, of the time of the roll-out."""
    return in_words(
        rollout["requests"], rollout["failed"], rollout["uncounted"], rollout["uncounted_services"]
    )


def step_name(step: Mapping[str, Any]) -> str:
    return f"{step['service']}/{step['slot']}"


def step_words(step: Mapping[str, Any]) -> str:
    """What happens to one slot: `replaced, pid 4711 -> 4811`."""
    done = _DONE.get(step["action"], step["action"])
    old, new = step["old_pid"], step["new_pid"]
    match step["state"]:
        case "done":
            return f"{done}{_pids(old, new)}"
        case "failed" | "failing" | "withdrawn" as state:
            word = f"not {done}" if state == "failed" else state
            # Not as if the one had become the other.
            return f"{word}{'' if new is None else f', new pid {new}'}{reason(step)}"
        case "starting" if new is None and old is not None:
            return f"starting, replaces pid {old}"
        case state:
            return f"{_spaced(state)}{_pids(old, new)}{reason(step)}"


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Of a /status: what runs with all that is under way, and the last one that ended."""
    found = status.get("rollouts") or []
    running = [one for one in found if not one["result"]]
    ended = [one for one in found if one["result"]]
    if refused := status.get("reload_refused"):
        when = _time(refused["at"])
        yield f"the last reload, at {when}, was refused, and nothing is changed: " + one_line(
            refused["reason"]
        )
    elif not status.get("config_ok", True) and not running:
        yield "the last reload did not succeed"
    for rollout in running:
        yield heading(rollout)
        for step in rollout["steps"]:
            if step["state"] not in ("waiting", "done"):
                yield f"  {step_name(step)} {step_words(step)}"
    if ended:
        yield f"{heading(ended[-1])}; {requests(ended[-1])}"


def _time(at: float) -> str:
    """Of the day, here."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _pids(old: int | None, new: int | None) -> str:
    if old is not None and new is not None:
        return f", pid {old} -> {new}"
    known = new if old is None else old
    return "" if known is None else f", pid {known}"


def _word(rollout: Rollout) -> str:
    by = rollout["superseded_by"]
    return _spaced(rollout["result"]) + ("" if by is None else f" by {by}")


def _spaced(word: str) -> str:
    return word.replace("_", " ")
