"""Changes of the settings of proxies that run, and their answers.

Owns the questions that proxies have not answered yet. A proxy that ends meanwhile has answered: the
next one in its place is started with what is in force then. One that does not answer in time is
stuck; its settings are unknown, and the change has failed.

Must not know what the settings are, nor who decides on them (`reconfiguration`).
"""

import asyncio
from collections.abc import Container, Mapping
from contextlib import suppress
from itertools import count
from socket import socket
from typing import Any, Final

from penstock_proxy.config_parts import parts_of
from penstock_proxy.messages import LISTEN, RECONFIGURE, STATS, UNLISTEN
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.children.stop_times import proxy_finish_s
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.fd_delivery import deliver
from penstock_supervisor.rotation.rotation import Rotation

ANSWER_S: Final = 10.0
"""As long as a proxy may be silent before it is killed."""
_MAX_ERROR: Final = 300

Problems = tuple[str, ...]


class ProxyUpdates:
    """Made once for a run."""

    def __init__(self, resources: Resources, slots: Slots, rotation: Rotation) -> None:
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self._numbers = count(1)
        self._waiting: dict[tuple[Child, int], asyncio.Future[str]] = {}
        """The error, or empty, by proxy and number."""

    async def reconfigure(self) -> Problems:
        """Send all proxies what is in force, and wait until they have it. Returns why some have
        not."""
        number, asked = next(self._numbers), []
        finish_s = {
            name: proxy_finish_s(self._resources.services[name].timeouts.stop)
            for name in self._resources.unserved
        }
        for proxy in self._staying():
            config = self._resources.proxy_config(
                proxy.plan.slot,
                self._rotation.targets(),
                self._rotation.is_up_anywhere,
                inherits=False,
            )
            message = {"cmd": RECONFIGURE, "seq": number, "finish": finish_s}
            if proxy.send_each((*parts_of(config), message)):
                asked.append(proxy)
        return await self._answers(asked, number)

    def answered(self, proxy: Child, message: Mapping[str, Any]) -> None:
        """A proxy sent RECONFIGURED."""
        number, error = message.get("seq"), message.get("error")
        if isinstance(number, int):
            self._settle(proxy, number, str(error or "")[:_MAX_ERROR])

    def exited(self, proxy: Child) -> None:
        for one, number in tuple(self._waiting):
            if one is proxy:
                self._settle(proxy, number, "")

    async def listen(self, service: str) -> Problems:
        """Have all proxies accept from the newest sockets of a service, too, and wait until they
        have them."""
        number, asked = next(self._numbers), []
        listeners = self._resources.listeners[service]
        for proxy in self._staying():
            for sock in listeners.proxy_sockets(proxy.plan.slot):
                asked.append(proxy)
                self._send_listener(proxy, service, sock, number)
        return await self._answers(asked, number)

    def still_have(self, services: Container[str]) -> bool:
        """Did a proxy say, when it was last asked, that something is left of these? Ask again."""
        found = False
        for proxy in self._with_channel():
            counted = proxy.stats.get("metrics", {}).get("services", {})
            found |= any(name in services for name in counted)
            proxy.send({"cmd": STATS, "seq": 0})
        return found

    def unlisten(self, service: str) -> None:
        """Have each proxy accept what waits at all listeners of the service but the newest, and
        close them."""
        for proxy in self._staying():
            proxy.send({"cmd": UNLISTEN, "service": service, "keep": 1})

    def _send_listener(self, proxy: Child, service: str, sock: socket, number: int) -> None:
        def is_wanted() -> bool:
            return (proxy, number) in self._waiting

        deliver(
            asyncio.get_running_loop(),
            proxy,
            {"cmd": LISTEN, "service": service},
            sock,
            is_wanted,
            on_arrived=lambda: self._settle(proxy, number, ""),
        )

    async def _answers(self, asked: list[Child], number: int) -> Problems:
        loop = asyncio.get_running_loop()
        futures = {proxy: loop.create_future() for proxy in asked}
        self._waiting.update({(proxy, number): future for proxy, future in futures.items()})
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await asyncio.gather(*futures.values())
        finally:
            for proxy in asked:
                del self._waiting[proxy, number]
        return tuple(
            f"{proxy.name}: {error}"
            for proxy, future in futures.items()
            if (error := _error(future))
        )

    def _settle(self, proxy: Child, number: int, error: str) -> None:
        future = self._waiting.get((proxy, number))
        if future is not None and not future.done():
            future.set_result(error)

    def _staying(self) -> list[Child]:
        """A proxy that is about to end accepts nothing any more, and finishes what it has with
        the settings that it has."""
        return [proxy for proxy in self._with_channel() if proxy.state is not State.STOPPING]

    def _with_channel(self) -> list[Child]:
        return [proxy for proxy in self._slots.proxies if proxy.has_channel]


def _error(future: "asyncio.Future[str]") -> str:
    if future.cancelled() or not future.done():
        return f"it has not answered within {ANSWER_S:g} s"
    return future.result()
