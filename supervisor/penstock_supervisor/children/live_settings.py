"""Other settings for a child that goes on running.

Owns what of a child changes without a new process: its times, its restarts, and how it is asked to
end. Must not know where the settings come from, nor which changes need a new process
(`plan.needs_new_process`).
"""

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import ChildPlan


def use_settings(child: Child, plan: ChildPlan) -> None:
    """From now on the child, and its process, if it has one, go by this plan. A time that runs
    already, such as that of a stop, is not changed."""
    child.plan = plan
    child.starts.use_settings(plan.restart)
    if child.state is State.STOPPING:
        return
    child.stop_s = plan.stop_s
    if child.running is not None:
        child.running.use_settings(plan)
