"""Which version of its program each slot is to have, and what has to be done to get there.

A version is a `Revision` as far as workers are concerned: their number, and what each is started
with. A worker is of another version if its process would have to be started in another way. What
is behind that, the program's files, nobody looks at: who says `penstock reload` without another
configuration means these, so then every worker is replaced.

Owns no state: `resources` has the revision in force, and `slots` what runs.
"""

from collections.abc import Collection, Iterable, Iterator

from penstock_supervisor.children import plan
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import ChildPlan, Slot
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config import change_report
from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.model import MAX_WORKERS, Config, Service
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.revision import Revision


class RunVersions:
    def __init__(self, resources: Resources, slots: Slots) -> None:
        self._resources = resources
        self._slots = slots

    # For replacements: what new processes are started with.

    def successor_plan(self, child: Child, *, renewed: bool) -> tuple[ChildPlan, bool]:
        """For another process in the slot of `child`. `renewed`: of the version in force; else of
        that of `child`. Also says whether both can run at the same time."""
        made, beside = self._resources.successor_plan(child, renewed=renewed)
        return plan.awaiting_accept(made), beside

    def worker_plan(self, slot: Slot) -> ChildPlan:
        """For a slot that is added."""
        made = self._resources.worker_plan(self._planned[slot[0]], slot[1])
        return plan.awaiting_accept(made)

    def is_wanted(self, slot: Slot) -> bool:
        """Has the version in force such a slot?"""
        return has_slot(self._resources.planned.config, slot)

    def slot_removed(self, child: ChildPlan) -> None:
        """This worker goes, and nobody comes in its place."""
        self._resources.release_socket(child)

    def surge(self, service: str) -> int:
        known = self._planned.get(service)
        # One that is gone has all its workers end at once: nobody comes in their place.
        return MAX_WORKERS if known is None else known.rollout.surge

    def watch_s(self, service: str) -> float:
        known = self._planned.get(service)
        return 0.0 if known is None else known.rollout.watch

    # For roll-outs.

    @property
    def in_force(self) -> Revision:
        return self._resources.revision

    def go_back_to(self, version: Revision) -> None:
        """From now on new processes of a roll-out are of a version that was in force before."""
        self._resources.plan_by(version)

    def describe(self, new: Config, names: Collection[str]) -> tuple[str, ...]:
        """What a roll-out to it changes and leaves alone, a line each."""
        moved = self._resources.moved(new)
        replaced = compare(self._resources.config, new).replaced(names, moved)
        changes = compare(self._resources.present, new)
        told = change_report.lines(changes, replaced, moved)
        return (*told, *self._late_proxies(new))

    def _late_proxies(self, new: Config) -> Iterator[str]:
        """Proxies that it needs, in whose slots others still finish what they have."""
        wanted = new.proxies if any(service.has_proxy for service in new.services) else 0
        for proxy in tuple(self._slots.proxies):
            if proxy.state is State.STOPPING and proxy.plan.slot < wanted:
                yield f"{proxy.name} still finishes what it has; the next one starts after it"

    def moved_since(self, before: Revision) -> set[str]:
        """The services whose programs are started elsewhere than by the version `before`."""
        old = before.directories
        return {
            name for name, path in self.in_force.directories.items() if old.get(name, path) != path
        }

    def targets(self, before: Revision, names: Collection[str]) -> list[Slot]:
        """The slots that have to be added, replaced or removed, in this order, to come from
        `before` to the version in force. The workers of the services in `names` in any case."""
        # Of those that are named also one that a change has left, and that is there again.
        changes = compare(before.config, self._resources.config)
        replaced = changes.replaced(names, self.moved_since(before)) | {*names}
        wanted: list[Slot] = []
        for service in self._planned.values():
            for number in range(_worker_count(service)):
                slot = service.name, number
                current = self._slots.current.get(slot)
                if (
                    current is None
                    or service.name in replaced
                    or self._resources.needs_new_process(current)
                ):
                    wanted.append(slot)
        gone = [
            slot
            for slot in sorted(self._slots.current)
            if slot[0] in self._planned and not self.is_wanted(slot)
        ]
        return [*wanted, *gone]

    def leftover(self) -> list[Slot]:
        """The slots of services that are no more in force."""
        return [slot for slot in self._slots.current if slot[0] not in self._planned]

    def has_leaving(self) -> bool:
        """Has a service that is no more in force a process?"""
        return any(child.plan.service not in self._planned for child in self._slots.workers())

    def differs(self, slot: Slot) -> bool:
        """Is its process another one than new processes of a roll-out are? Or it has none and
        should, or the other way round."""
        current = self._slots.current.get(slot)
        if current is None or not self.is_wanted(slot):
            return (current is not None) is not self.is_wanted(slot)
        return self._resources.needs_new_process(current)

    def age_s(self, slot: Slot) -> float | None:
        """For how long its present process has run; None: it has none."""
        current = self._slots.current.get(slot)
        return None if current is None else current.age_s

    def down(self) -> list[str]:
        """The services in force that have workers, none of which is ready."""
        ready = {slot[0] for slot, child in self._slots.current.items() if child.state is State.UP}
        return [
            name
            for name, service in self._planned.items()
            if service.has_program and name not in ready
        ]

    def canaries(self, targets: Iterable[Slot]) -> dict[Slot, float]:
        """The slots that go first and are compared with the others, and for how long."""
        found: dict[str, Slot] = {}
        for slot in targets:
            if not self.is_wanted(slot):
                continue
            service = self._planned[slot[0]]
            others = [one for one in self._slots.current if one[0] == slot[0] and one != slot]
            if service.rollout.canary and others and slot in self._slots.current:
                found.setdefault(slot[0], slot)
        return {slot: self._planned[name].rollout.canary for name, slot in found.items()}

    @property
    def _planned(self) -> dict[str, Service]:
        return self._resources.planned.services


def has_slot(config: Config, slot: Slot) -> bool:
    """Has this configuration such a slot?"""
    name, number = slot
    return any(one.name == name and number < _worker_count(one) for one in config.services)


def _worker_count(service: Service) -> int:
    return service.workers if service.has_program else 0
