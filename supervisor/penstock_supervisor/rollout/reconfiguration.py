"""Brings a run from one configuration to another: all of it but the processes of workers.

Owns the order. A change has these steps, and whoever drives a roll-out says when each is due:

    prepare        opens what is new and reads what has to be read. ReloadRefused, and nothing is
                   changed, if anything is wrong.
    apply          the settings are in force: plans of workers, the watch over them, certificates,
                   proxies and their number. A new address is served beside the old one. If a proxy
                   cannot follow, or a worker that stays is not well by other checks, it is
                   ReloadRefused as well. A new service takes clients when a worker serves.
    finish         after the workers: services that are gone begin to end, addresses are given up.
    leave          in place of that: another change goes on from here. Nothing is taken away, and
                   that one adopts what there is.
    revert         likewise: back to what was there before, and before the changes that were left.
    forget         nothing is left of services that are gone (`removals` says when; another change
                   may have begun).

Between `apply` and `finish` a service that is removed is still served as it was, and an address
that is given up still leads to its service. So an aborted change takes nothing away.

Must not know which workers are replaced, and when.
"""

import asyncio
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from penstock_supervisor import blocking
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import PROXY_START_S
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.children.stop_times import stop_message, worker_stop_s
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import ReloadRefused, StartError
from penstock_supervisor.rollout import preparation
from penstock_supervisor.rollout.changed_checks import Asked, ChangedChecks
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.new_addresses import NewAddresses, log_problems
from penstock_supervisor.rollout.preparation import READ_S, Prepared, Sockets
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.proxy_updates import Problems
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.revision import Revision
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks

_LOOK_EVERY_S: Final = 0.2
_PROXIES_START_S: Final = 2 * PROXY_START_S
"""For proxies that are new; one that cannot be started is tried again for a while."""

_log = logging.getLogger("penstock.supervisor")


class Reconfiguration:
    """Made once for a run. One change at a time: the next begins when this one has ended."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        resources: Resources,
        slots: Slots,
        proxies: Proxies,
        rotation: Rotation,
        worker_checks: WorkerChecks,
        condition: Condition,
        on_forgotten: Callable[[str], None],
    ) -> None:
        """`on_forgotten` is called with the name of a service of which nothing is left."""
        self._loop = loop
        self._resources = resources
        self._slots = slots
        self._proxies = proxies
        self._rotation = rotation
        self._worker_checks = worker_checks
        self._condition = condition
        self._checks = ChangedChecks(resources, slots, rotation, worker_checks, condition)
        self._addresses = NewAddresses(loop, resources, proxies, rotation, condition)
        self._on_forgotten = on_forgotten
        self._unfinished: list[Prepared] = []
        """Changes whose removed services have not been forgotten."""
        self._left: Prepared | None = None
        """What the next change goes on from."""
        self._preparing = asyncio.Lock()
        self._is_changing = False
        self._checking: asyncio.Task[bool] | None = None

    def close(self) -> None:
        self._addresses.close()

    # The steps.

    async def prepare(self, new: Config) -> Prepared:
        """ReloadRefused: it cannot be done, and nothing is changed. No `check` holds it up."""
        self._is_changing = True
        if self._checking is not None:
            self._checking.cancel()
        try:
            async with self._preparing:
                return await preparation.prepare(self._resources, new, self._left)
        except BaseException:
            # A change that was left is still there to be reverted.
            self._is_changing = self._left is not None
            raise

    async def check(self, new: Config) -> bool:
        """Find out whether it can be had, and leave nothing of that. ReloadRefused: it cannot.
        False: nobody can say as long as another change is under way."""
        async with self._preparing:
            if self._is_changing:
                return False
            self._checking = self._loop.create_task(preparation.check(self._resources, new))
            try:
                await asyncio.wait({self._checking})
            finally:
                self._checking.cancel()
            return not self._checking.cancelled() and self._checking.result()

    async def apply(self, prepared: Prepared, names: Collection[str] = ()) -> None:
        """`names`: see `Changes.replaced`. ReloadRefused: it has failed, and has to be reverted."""
        try:
            await self._hand_over_logs(prepared.after.config)
        except BaseException:
            prepared.on_failure.close()
            raise
        self._left = None
        self._use_listeners(prepared)
        asked = self._use(prepared, prepared.after, names)
        self._adopt(prepared)
        try:
            problems = await self._settle_proxies(prepared)
            problems = problems or await self._checks.problems(asked)
            problems = problems or await self._addresses.serve(prepared)
            problems = problems or await self._settle_number()
        except StartError as error:
            problems = (str(error),)
        if problems:
            raise ReloadRefused(problems)
        self._addresses.serve_when_workers_do(prepared)

    async def _hand_over_logs(self, config: Config) -> None:
        try:
            await blocking.within(READ_S, "logs", self._resources.hand_over_logs, config)
        except blocking.BlockedError as error:
            raise ReloadRefused((f"access_log: not given to the user: {error}",)) from None

    async def finish(self, prepared: Prepared) -> None:
        """After the workers. Services that are removed accept nobody any more; see `removals`."""
        resources, updates = self._resources, self._proxies.updates
        await self._addresses.serve_the_rest(prepared)
        moved = self._close_our_copies(prepared)
        for name in moved - prepared.taken.keys():
            if resources.services[name].has_proxy:
                updates.unlisten(name)
        if prepared.removed:
            log_problems(await updates.reconfigure())
            self._announce_end(prepared)
        for name in prepared.taken:
            resources.withheld.discard(name)
            log_problems(await updates.listen(name))
            if name in moved:
                updates.unlisten(name)
        self._proxies.cover_again()
        prepared.on_failure.pop_all()
        self._is_changing = False
        if prepared.removed:
            self._unfinished.append(prepared)
        else:
            self._use_proxies()

    @property
    def removed(self) -> set[str]:
        """The services that a change has taken away, and that are not forgotten yet."""
        return {name for prepared in self._unfinished for name in prepared.removed}

    def forget(self) -> None:
        """The workers of the services that are removed have ended."""
        for prepared in self._unfinished:
            for name in prepared.removed:
                self._forget(name)
        self._unfinished.clear()

    def _use_proxies(self) -> None:
        self._proxies.use_number()
        self._proxies.use_plans()

    async def leave(self, prepared: Prepared) -> None:
        """It is superseded. The next change goes on from here."""
        await self._addresses.stop_waiting()
        self._left = prepared

    async def revert(self, prepared: Prepared) -> None:
        """Back to the configuration before. Workers that were added are gone already."""
        await self._addresses.stop_waiting()
        self._left = None
        if prepared.sockets is None:
            prepared.on_failure.close()
            self._is_changing = False
            if prepared.left is not None:
                await self.revert(prepared.left)
            return
        resources, updates = self._resources, self._proxies.updates
        moved = self._moved_back(prepared)
        resources.listeners.update(prepared.sockets.listeners)
        resources.retiring = dict(prepared.sockets.retiring)
        resources.withheld = set(prepared.sockets.withheld)
        resources.unserved.update(prepared.added)
        prepared.on_failure.close()
        self._use(prepared, prepared.before)
        self._proxies.use_number()
        problems = list(await self._settle_proxies(prepared))
        for name in moved:
            # What is newest stays.
            problems += await updates.listen(name)
            updates.unlisten(name)
        self._proxies.cover_again()
        for name in prepared.added:
            self._forget(name)
        self._is_changing = False
        log_problems(tuple(problems))

    # What they consist of.

    def _use_listeners(self, prepared: Prepared) -> None:
        resources, left = self._resources, prepared.left
        now = Sockets(dict(resources.listeners), dict(resources.retiring), {*resources.withheld})
        prepared.sockets = now if left is None else left.sockets
        if left is not None:
            prepared.on_failure.callback(left.on_failure.close)
        for name in prepared.present & prepared.after.services.keys():
            older = list(now.retiring.get(name, ()))
            if name not in now.withheld:
                older.append(now.listeners[name])
            found = tuple(one for one in older if one is not prepared.listeners[name])
            if found:
                resources.retiring[name] = found
            else:
                resources.retiring.pop(name, None)
        resources.listeners.update(prepared.listeners)
        resources.withheld.difference_update(prepared.after.services)
        resources.withheld.update(prepared.taken)

    def _adopt(self, prepared: Prepared) -> None:
        """What a change that was left would go back to, this one goes back to."""
        if prepared.left is not None:
            prepared.ports = prepared.left.ports
            prepared.certificates.update(prepared.left.certificates)

    def _moved_back(self, prepared: Prepared) -> set[str]:
        """The services of which proxies have other listeners than they had before."""
        assert prepared.sockets is not None
        resources, before = self._resources, prepared.sockets.listeners
        found = set()
        for name, older in resources.retiring.items():
            only = name in resources.withheld and older == (before.get(name),)
            if name in prepared.before.services and not only:
                found.add(name)
        return {name for name in found if resources.services[name].has_proxy}

    def _use(self, prepared: Prepared, revision: Revision, names: Collection[str] = ()) -> Asked:
        """All that is in the supervisor itself, without a wait. Returns as `ChangedChecks.use`."""
        resources, certificates = self._resources, self._proxies.certificate_reload
        before = resources.revision
        resources.use(revision)
        for name, service in revision.services.items():
            resources.listeners[name].service = service
            if not service.has_proxy:
                self._worker_checks.use(service)
        prepared.ports = resources.ports.use(prepared.ports)
        for name, other in tuple(prepared.certificates.items()):
            prepared.certificates[name] = certificates.of(name)
            certificates.use(name, other)
        asked = self._checks.use(before, names)
        self._proxies.use_plans()
        return asked

    def _forget(self, name: str) -> None:
        self._rotation.forget(name)
        self._resources.forget(name)
        self._worker_checks.remove_service(name)
        self._on_forgotten(name)

    async def _settle_proxies(self, prepared: Prepared) -> Problems:
        """Bring all proxies to what is in force."""
        announce = self._proxies.certificate_reload.announce
        stay = prepared.before.services.keys() & prepared.after.services.keys()
        # Certificates come before what uses them: a change that begins TLS has begun when it is
        # answered. A service that is new gets them when it is there.
        for name in prepared.certificates.keys() & stay:
            announce(name)
        problems = await self._proxies.updates.reconfigure()
        for name in prepared.certificates if prepared.left else prepared.certificates.keys() - stay:
            announce(name)
        return problems

    async def _settle_number(self) -> Problems:
        """Start the proxies that are new, and end those that are not needed."""
        self._proxies.use_number()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PROXIES_START_S):
                await self._condition.wait_until(self._proxies.newcomers_started)
        return self._proxies.newcomers_failed()

    def _close_our_copies(self, prepared: Prepared) -> set[str]:
        """Of what is not served any more. First of all: what comes after that is refused, and what
        waits is accepted. Proxies that are started from now on do not get them. Returns the
        services of which an address is given up."""
        resources, moved = self._resources, set()
        used = [resources.listeners[name] for name in prepared.after.services]
        for name in prepared.removed:
            resources.listeners[name].close(but=used)
        resources.unserved.update(prepared.removed)
        resources.withheld.difference_update(prepared.removed)
        for name, retiring in resources.retiring.items():
            for one in retiring:
                one.close(but=used)
            if name in prepared.after.services:
                moved.add(name)
                where = ", ".join(str(one.address) for one in retiring)
                _log.info("%s is not served at %s any more", name, where)
        resources.retiring = {}
        self._proxies.use_plans()
        return moved

    def _announce_end(self, prepared: Prepared) -> None:
        """Tell the workers of services that are removed what they are told before a whole run
        ends: they close their WebSockets, while the proxies finish the rest."""
        for child in self._slots.workers():
            service = self._resources.services[child.plan.service]
            is_told = service.name in prepared.removed and service.has_proxy
            if is_told and child.plan.runs_our_code and child.state is State.UP:
                child.send(stop_message(child.plan, child.stop_s, at_once=False))

    async def until_unused(self, is_awaited: Callable[[], bool]) -> bool:
        """Wait until proxies have nothing left of the services that are removed, or must have ended
        it. False: it has not come so far, and somebody else waits."""
        services = [self._resources.services[name] for name in self.removed]
        proxied = {one.name: one.timeouts.stop for one in services if one.has_proxy}
        if proxied:
            with suppress(TimeoutError):
                async with asyncio.timeout(worker_stop_s(max(proxied.values()))):
                    await asyncio.sleep(_LOOK_EVERY_S)
                    while self._proxies.updates.still_have(proxied):
                        # Without a service that stays, what comes next would end the proxies.
                        if is_awaited() and self._resources.proxies_wanted:
                            return False
                        await asyncio.sleep(_LOOK_EVERY_S)
        self._use_proxies()
        return True
