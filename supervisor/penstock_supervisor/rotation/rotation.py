"""Who is in the rotation, and all that is said to those who decide it.

Under `ports` and `handoff` the proxies decide, each for itself; under `shared` and `reuseport`,
where there is none, the checks of this process do. All are told the same things (a process
is ready, gone, about to leave) and answer with who entered or left; so nobody else need know
who it is, or how many. Owns what was answered (a worker is in the rotation when it is in that
of every proxy), and the questions that are out ("stop picking": answered when every proxy has).
Links are `handoff_links`' own.
"""

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final, NamedTuple

from penstock_proxy.messages import DRAIN_WORKER, JOIN, LEAVE, ROTATION, UNLINKED, WORKER_DRAINED
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.config.model import Service
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.handoff_links import HandoffLinks
from penstock_supervisor.rotation.proxy_views import UP, ProxyViews
from penstock_supervisor.rotation.worker_checks import WorkerChecks

_DRAIN_TIMEOUT_S: Final = 1.0
"""A proxy that does not answer is stuck, and a stuck proxy picks nobody."""

_WORKER_CHECKS: Final = 0
"""Whose view it is where there is no proxy."""

_log = logging.getLogger("penstock.supervisor")


class _Drain(NamedTuple):
    """A question that is out."""

    timer: TimerHandle
    then: Callable[[], None]
    missing: set[Child]
    """Proxies that have not answered."""


class Rotation:
    """`changed` is called whenever somebody entered or left, as all proxies see it."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: tuple[Service, ...],
        slots: Slots,
        worker_checks: WorkerChecks,
        changed: Callable[[Slot, str], None],
    ) -> None:
        self._loop = loop
        self._proxied = {service.name for service in services if service.has_proxy}
        self._slots = slots
        self._worker_checks = worker_checks
        self._changed = changed
        self._views = ProxyViews()
        self._joined: set[Slot] = set()
        self._draining: set[Slot] = set()
        self._numbers = count(1)
        self._drains: dict[int, _Drain] = {}
        self._links = HandoffLinks(loop, slots, self._join_late)

    # What is known.

    def is_up(self, slot: Slot) -> bool:
        """In the rotation of every proxy."""
        return self._merged(slot) == UP

    def is_up_anywhere(self, slot: Slot) -> bool:
        return self._views.is_up_anywhere(slot)

    def is_joined(self, slot: Slot) -> bool:
        """Is its process ready, and not about to leave?"""
        current = self._slots.current.get(slot)
        return current is not None and current.state is State.UP and slot not in self._draining

    def serving(self) -> set[str]:
        """The services that have anybody in rotation, whichever proxy a client comes to."""
        checked = self._views.serving(_WORKER_CHECKS) - self._proxied
        up = (one.plan.slot for one in self._slots.proxies if one.state is State.UP)
        proxies = [number for number in up if number not in self._slots.covered]
        if not proxies:
            return checked
        proxied = set.intersection(*map(self._views.serving, proxies))
        return checked | (proxied & self._proxied)

    # What is said.

    def join(self, child: Child) -> None:
        """The slot's process is ready, wherever it listens."""
        slot = slot_of(child)
        self._draining.discard(slot)
        self._joined.add(slot)
        if not self._is_proxied(child):
            self._worker_checks.join(*slot, asks=child.speaks_protocol)
            return
        for proxy in self._slots.proxies:
            self._join(proxy, child)

    def leave(self, child: Child) -> None:
        """The slot's process is gone, or is told to go."""
        slot = slot_of(child)
        self._views.forget(slot)
        self._draining.discard(slot)
        if slot not in self._joined:
            return
        self._joined.discard(slot)
        if self._is_proxied(child):
            for proxy in self._slots.proxies:
                proxy.send({"cmd": LEAVE, "service": slot[0], "slot": slot[1]})
        else:
            self._worker_checks.leave(*slot)

    def drain(self, child: Child, then: Callable[[], None]) -> None:
        """Nobody may pick it any more; `then` is called when that is so."""
        slot = slot_of(child)
        self._draining.add(slot)
        # Who is up next in this slot is said by the proxies; not that the last one was.
        self._views.forget(slot)
        if not self._is_proxied(child):
            self._worker_checks.drain(*slot)
            self._loop.call_soon(then)
            return
        number = next(self._numbers)
        timer = self._loop.call_later(_DRAIN_TIMEOUT_S, self._release, number)
        order = {"cmd": DRAIN_WORKER, "service": slot[0], "slot": slot[1], "seq": number}
        # One that comes back picks only whom it is told of.
        asked = {proxy for proxy in self._slots.proxies if proxy.send(order)}
        self._drains[number] = _Drain(timer, then, asked)
        if not asked:
            self._loop.call_soon(self._release, number)

    def spawned(self, child: Child) -> None:
        """A process was started that may have links."""
        self._links.worker_spawned(child)

    def gone(self, child: Child) -> None:
        """That process is gone."""
        self._links.worker_gone(child)

    def proxy_spawned(self, proxy: Child, up: Iterable[Slot]) -> None:
        """A new proxy is configured, and believes that those are up; tell it about the links
        that are there."""
        self._views.begin(proxy.plan.slot, up)
        self._links.proxy_spawned(proxy)
        for child in self._slots.workers():
            if not child.links:
                continue
            self._links.send(proxy, child)
            if self._slots.is_current(child) and self.is_joined(slot_of(child)):
                self._join(proxy, child)

    def proxy_gone(self, proxy: Child) -> None:
        """It picks nobody any more."""
        for number in tuple(self._drains):
            self._drained_by(number, proxy)
        self._links.proxy_gone(proxy)

    def close(self) -> None:
        for drain in self._drains.values():
            drain.timer.cancel()
        self._links.close()

    # What is heard.

    def heard(self, proxy: Child, message: dict[str, Any]) -> bool:
        """A message of a proxy; False if it is about something else."""
        if message["cmd"] == WORKER_DRAINED:
            number = message.get("seq")
            if isinstance(number, int):
                self._drained_by(number, proxy)
            return True
        if message["cmd"] == UNLINKED:
            self._links.reclaimed(message.get("link"), proxy)
            return True
        if message["cmd"] != ROTATION:
            return False
        service, slot, state = message.get("service"), message.get("slot"), message.get("state")
        if isinstance(service, str) and isinstance(slot, int) and isinstance(state, str):
            reason = str(message.get("reason") or "")
            self._worker_changed((service, slot), state, reason, by=proxy.plan.slot)
        return True

    def worker_changed(self, service: str, number: int, state: str, reason: str) -> None:
        """The checks say that a worker entered or left the rotation."""
        self._worker_changed((service, number), state, reason, by=_WORKER_CHECKS)

    def _worker_changed(self, slot: Slot, state: str, reason: str, *, by: int) -> None:
        current = self._slots.current.get(slot)
        if current is not None and current.state is not State.UP:
            # On its way before the proxy heard that the process is gone.
            return
        before = self._merged(slot)
        self._views.report(slot, by, state)
        merged = self._merged(slot)
        where = f" at proxy/{by}" if len(self._counted(slot)) > 1 and state != UP else ""
        why = f": {reason}" if reason else ""
        _log.log(
            logging.DEBUG if merged == before else logging.INFO,
            "%s/%d is %s%s%s", *slot, state, where, why,
        )  # fmt: skip
        if merged != before:
            self._changed(slot, merged)

    def _merged(self, slot: Slot) -> str:
        return self._views.merged(slot, self._counted(slot))

    def _counted(self, slot: Slot) -> list[int]:
        """Whose view counts: not that of a proxy that others accept for."""
        if slot[0] not in self._proxied:
            return [_WORKER_CHECKS]
        numbers = (proxy.plan.slot for proxy in self._slots.proxies if not proxy.at_rest)
        return [number for number in numbers if number not in self._slots.covered]

    def _drained_by(self, number: int, proxy: Child) -> None:
        """This proxy picks it no more."""
        if (drain := self._drains.get(number)) is not None:
            drain.missing.discard(proxy)
            if not drain.missing:
                self._release(number)

    def _release(self, number: int) -> None:
        if (drain := self._drains.pop(number, None)) is not None:
            drain.timer.cancel()
            drain.then()

    def _is_proxied(self, child: Child) -> bool:
        return child.plan.service in self._proxied

    def _join(self, proxy: Child, child: Child) -> None:
        service, slot = slot_of(child)
        order: dict[str, Any] = {"cmd": JOIN, "service": service, "slot": slot}
        if child.links:
            order["link"] = child.links[proxy.plan.slot].number
        elif child.plan.address is not None:
            order["address"] = str(child.plan.address)
        proxy.send(order)

    def _join_late(self, proxy: Child, slot: Slot, link: HandoffLink) -> None:
        """It was told to join a worker to which it had no link."""
        current = self._slots.current.get(slot)
        if current is not None and link in current.links and self.is_joined(slot):
            self._join(proxy, current)
