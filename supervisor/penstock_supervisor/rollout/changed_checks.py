"""The settings of workers that run, and of those settings the checks, when a change begins.

Owns who is checked otherwise from now on. The checks of a new version are for its processes: those
of before may not even know the path that is asked for. So a worker that is about to be replaced
keeps its checks to its end, and an aborted change has nothing to heal. Where nobody is replaced the
new checks are for those that are there: whoever was well before has to pass one, or the change has
failed. Who was not well before says nothing about the change.

Must not know how a check is made, nor what becomes of a change that has failed.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from penstock_supervisor.children.live_settings import use_settings
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.children.slots import Slots, member_key
from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.per_proxy import checks_of
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxy_updates import Problems
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.revision import Revision
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks

Asked = Mapping[MemberKey, str]
"""Workers and upstreams, and what people call each."""


class ChangedChecks:
    """Made once for a run."""

    def __init__(
        self,
        resources: Resources,
        slots: Slots,
        rotation: Rotation,
        worker_checks: WorkerChecks,
        condition: Condition,
    ) -> None:
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self._worker_checks = worker_checks
        self._condition = condition

    def use(self, before: Revision, names: Collection[str]) -> Asked:
        """Give all workers that run the settings in force, which were those of `before` until now.
        `names`: as `Changes.replaced` has them.

        Returns those that were well until now, and are checked otherwise from now on.
        """
        changed = {**self._use_for_workers(before, names), **dict(self._upstreams(before))}
        return {key: name for key, name in changed.items() if self._rotation.is_up_everywhere(key)}

    def _use_for_workers(self, before: Revision, names: Collection[str]) -> dict[MemberKey, str]:
        resources, changed = self._resources, {}
        replaced = compare(before.config, resources.config).replaced(names) | {*names}
        services = resources.revision.services
        for child in self._slots.workers():
            service = services.get(child.plan.service)
            if service is None:
                continue
            own, plan = child.plan.health, resources.current_settings(child.plan)
            if service.name in replaced or resources.needs_new_process(child):
                plan = replace(plan, health=own)
            use_settings(child, plan)
            if not service.has_proxy:
                self._worker_checks.set_health(member_key(child), plan.health)
            if plan.health != own:
                changed[member_key(child)] = child.name
        return changed

    def _upstreams(self, before: Revision) -> Iterator[tuple[MemberKey, str]]:
        now = self._resources.revision
        for name, service in now.services.items():
            old = before.services.get(name)
            if old is not None and checks_of(old) != checks_of(service):
                for member in self._resources.upstreams.of(name):
                    yield (name, member.number), f"{name}: {member}"

    async def problems(self, asked: Asked) -> Problems:
        """Have each of these checked, and wait for a good check of all, or a bad one. In words why
        one has not passed."""
        if not asked:
            return ()
        rotation = self._rotation
        for member in asked:
            rotation.ask(member, self._condition.notify)
        services = self._resources.services
        start_s = max(services[name].timeouts.start for name, _ in asked)
        with suppress(TimeoutError):
            async with asyncio.timeout(start_s):
                await self._condition.wait_until(
                    lambda: (
                        any(map(rotation.why_denied, asked))
                        or not any(map(rotation.is_asked, asked))
                    )
                )
            return self._denied(asked)
        late = (name for member, name in asked.items() if rotation.is_asked(member))
        return tuple(
            f"{name} has passed no check by the new settings in {start_s:g} s" for name in late
        )

    def _denied(self, asked: Asked) -> Problems:
        return tuple(
            f"{name} does not pass its check by the new settings: {why}"
            for member, name in asked.items()
            if (why := self._rotation.why_denied(member))
        )
