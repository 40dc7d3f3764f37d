"""Opens the addresses that a change has added.

Owns when each is: at once where somebody serves already, and else when a worker does, so that an
open port means that somebody answers. Must not know what else the change consists of
(`reconfiguration`).
"""

import asyncio
import logging
from asyncio import AbstractEventLoop

from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.preparation import Prepared
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.proxy_updates import Problems
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.rotation import Rotation

_log = logging.getLogger("penstock.supervisor")


class NewAddresses:
    """Those of one change at a time."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        resources: Resources,
        proxies: Proxies,
        rotation: Rotation,
        condition: Condition,
    ) -> None:
        self._loop = loop
        self._resources = resources
        self._proxies = proxies
        self._rotation = rotation
        self._condition = condition
        self._waiting: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    async def serve(self, prepared: Prepared) -> Problems:
        """Open those where somebody is there who serves. StartError: somebody else has one."""
        problems: list[str] = []
        for name in prepared.opened | prepared.again:
            service = prepared.after.services[name]
            waits = name in prepared.added and service.has_proxy and service.has_program
            if not waits:
                problems += await self._serve(name, self._resources.listeners[name])
        return tuple(problems)

    def serve_when_workers_do(self, prepared: Prepared) -> None:
        """From now on open each of the others when a worker of it serves."""
        self._waiting = self._loop.create_task(self._open_when_served(prepared))

    async def stop_waiting(self) -> None:
        """Leave those that are not open as they are."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait({self._waiting})
            self._waiting = None

    async def serve_the_rest(self, prepared: Prepared) -> None:
        """Open all that are not open yet."""
        await self.stop_waiting()
        for name in self._unopened(prepared):
            await self._open_new(name)

    def _unopened(self, prepared: Prepared) -> set[str]:
        """New services that nobody can connect to yet."""
        return {
            name
            for name in (prepared.added & prepared.after.services.keys()) - prepared.taken.keys()
            if not self._resources.listeners[name].is_listening
        }

    async def _open_when_served(self, prepared: Prepared) -> None:
        while unopened := self._unopened(prepared):
            await self._condition.wait_until(
                lambda: not unopened.isdisjoint(self._rotation.services_up())
            )
            for name in unopened & self._rotation.services_up():
                await self._open_new(name)

    async def _open_new(self, name: str) -> None:
        try:
            log_problems(await self._serve(name, self._resources.listeners[name]))
        except StartError as error:
            # Bound it was; whoever listens there now was faster.
            _log.error("%s", error)

    async def _serve(self, name: str, listeners: ServiceListeners) -> Problems:
        listeners.listen()
        if not self._resources.services[name].has_proxy:
            return ()
        problems = await self._proxies.updates.listen(name)
        self._proxies.cover_again()
        self._proxies.use_plans()
        return problems


def log_problems(problems: Problems) -> None:
    """Say of each proxy that has not followed why."""
    for text in problems:
        _log.error("a proxy has not followed: %s", text)
