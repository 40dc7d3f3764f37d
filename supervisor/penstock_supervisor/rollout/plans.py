"""What new processes of slots are started with, as an interface.

Owns nothing but the names: `versions` implements them for a run, and tests do without one. It is a
module of its own so that whoever carries replacements out need not know where plans come from.
"""

from typing import Protocol

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import ChildPlan, Slot


class Plans(Protocol):
    """What new processes are started with."""

    def successor_plan(self, child: Child, *, renewed: bool) -> tuple[ChildPlan, bool]:
        """For another process in the slot of `child`. `renewed`: of the version in force; else of
        that of `child`. Also says whether both can run at the same time."""

    def worker_plan(self, slot: Slot) -> ChildPlan:
        """For a slot that is added."""

    def is_wanted(self, slot: Slot) -> bool:
        """Has the configuration in force such a slot?"""

    def slot_removed(self, child: ChildPlan) -> None:
        """This worker goes, and nobody comes in its place."""

    def surge(self, service: str) -> int: ...

    def watch_s(self, service: str) -> float:
        """So long the new process of a roll-out must stay in the rotation."""
