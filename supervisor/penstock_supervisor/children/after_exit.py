"""What follows from the end of a slot's process: the event for its table, the wait, and the words.

Owns who is charged for an exit. The process that its slot keeps alive is charged by the restart
policy, and is started again, for ever if need be. A successor is not started again: the old process
serves on, and who wanted it replaced decides about another try. A draining process is not either:
its slot has another one. Neither is charged.

Must not know the process, or what the event leads to (`lifecycle`). No I/O, no clock.
"""

import logging
from typing import Final, NamedTuple

from penstock_supervisor.children.lifecycle import LifecycleEvent
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.process.restart_policy import RestartPolicy
from penstock_supervisor.snapshot import Part

_ADVICE: Final = "once the cause is put right, penstock reload starts it at once"


class Ended(NamedTuple):
    """The end of a process, or a start that failed."""

    part: Part
    summary: str
    """What happened, for the log."""
    why: str
    """The same for who asks later; it may be the program's own reason."""
    ready_for_s: float
    postponed: bool
    """The start failed because the supervisor lacked something; the program is not at fault."""
    ends_run: bool


class AfterExit(NamedTuple):
    event: LifecycleEvent
    wait_s: float = 0.0
    level: int = logging.WARNING
    line: str = ""
    """What is logged at once; empty: nothing."""
    giveup: str = ""
    """It ended too often, and did not before: the reason, for the alarm and its event."""
    prospect: str = ""
    """What happens next, and what can be done, for the same."""


def decide(plan: ChildPlan, end: Ended, policy: RestartPolicy, now: float) -> AfterExit:
    """Charges the policy of the child."""
    if end.part == "draining":
        line = f"{end.summary}, before it had finished"
        return AfterExit(LifecycleEvent.NO_RESTART, line=line)
    if end.ends_run:
        return AfterExit(LifecycleEvent.NO_RESTART, giveup=end.why)
    if end.postponed:
        wait_s = policy.postponed()
        line = f"{end.summary}; trying again in {wait_s:.1f} s"
        return AfterExit(LifecycleEvent.EXITED, wait_s, line=line)
    was_in_crash_loop = policy.in_crash_loop
    if end.part == "successor":
        what = "ended" if end.ready_for_s else "does not start"
        line = f"the successor of {plan.name} {what}: {end.why}"
        # Whoever wanted it says what becomes of that, with the same reason, and how bad it is.
        return AfterExit(LifecycleEvent.NO_RESTART, level=logging.INFO, line=line)
    wait = policy.exited(now, end.ready_for_s)
    times, restart = policy.recent_exits, plan.restart
    if not policy.in_crash_loop:
        assert wait is not None
        line = f"{end.summary}; restart {times} of {restart.max_restarts} in {wait:.1f} s"
        return AfterExit(LifecycleEvent.EXITED, wait, line=line)
    event = LifecycleEvent.NO_RESTART if wait is None else LifecycleEvent.TOO_OFTEN
    if was_in_crash_loop and wait is not None:
        line = f"{end.summary}; still in the crash loop, next start in {wait:.1f} s"
        return AfterExit(event, wait, line=line)
    often = f"it ended {times} time{'s' * (times != 1)} within {restart.within:g} s"
    return AfterExit(
        event, wait or 0.0, giveup=f"{end.why}; {often}", prospect=_prospect(plan, wait)
    )


def _prospect(plan: ChildPlan, wait_s: float | None) -> str:
    if wait_s is None:
        following = "it is not started again, as restart.retry_after is 0"
    else:
        following = f"next start in {wait_s:.1f} s"
    # Nobody can start a proxy by hand.
    return following if plan.role == "proxy" else f"{following}; {_ADVICE}"


def unnamed(text: str, name: str) -> str:
    """A reason without the child's own name, for places that have it already."""
    return text.removeprefix(name).removeprefix(":").lstrip()
