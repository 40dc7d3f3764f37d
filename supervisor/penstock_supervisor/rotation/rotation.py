"""Which workers are in the rotation, and all messages to the proxies about it.

Under `ports` and `handoff` each proxy decides by itself. Under `shared` and `reuseport` there is
no proxy, and the supervisor's own worker checks decide. Both are told the same things: a process
is ready, gone, or about to leave. Both report which worker came into the rotation or left it. So
the rest of the supervisor does not need to know who decides, or how many proxies there are.

Owns the combined views (a worker is in the rotation if it is in that of every proxy), and the
unanswered DRAIN_WORKER messages (answered when every proxy has answered). The links are owned by
`handoff_links`.
"""

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final, NamedTuple

from penstock_proxy.balancing.member_state import SHOWN
from penstock_proxy.messages import (
    CHECKED,
    CROWDED,
    DRAIN_WORKER,
    HOLD,
    JOIN,
    LEAVE,
    RELEASE,
    ROTATION,
    UNLINKED,
    WORKER_DRAINED,
)
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.children.stop_times import proxy_finish_s
from penstock_supervisor.config.model import Service
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.handoff_links import HandoffLinks
from penstock_supervisor.rotation.proxy_views import UP, ProxyViews
from penstock_supervisor.rotation.room import ask_for_room
from penstock_supervisor.rotation.worker_checks import WorkerChecks

_DRAIN_TIMEOUT_S: Final = 1.0
"""A proxy that does not answer is stuck, and a stuck proxy picks no worker."""

_WORKER_CHECKS: Final = -1
"""Stands for the worker checks in place of a proxy's number, for services without a proxy. No
proxy has it: a new proxy begins without views, and must not take those of the checks along."""

_SHOWN: Final[dict[str, str]] = {one.value: word.value for one, word in SHOWN.items()}
"""The word for people, by a member state."""

_log = logging.getLogger("penstock.supervisor")


class _Drain(NamedTuple):
    """A DRAIN_WORKER that not all proxies have answered."""

    timer: TimerHandle
    on_drained: Callable[[], None]
    unanswered: set[Child]
    """Proxies that have not answered."""


class Rotation:
    """`on_change(slot, state)` is called when the combined state of a worker changes."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: tuple[Service, ...],
        slots: Slots,
        worker_checks: WorkerChecks,
        on_change: Callable[[Slot, str], None],
        on_check: Callable[[Slot, int, bool], None] = lambda *_: None,
    ) -> None:
        """`on_check(slot, proxy, answered)`: see CHECKED in `penstock_proxy.messages`."""
        self._loop = loop
        self._proxied = {service.name for service in services if service.has_proxy}
        """Services with a proxy."""
        self._slots = slots
        self._worker_checks = worker_checks
        self._on_change = on_change
        self._on_check = on_check
        self._views = ProxyViews()
        self._joined: set[Slot] = set()
        self._draining: set[Slot] = set()
        self._held: dict[Slot, str] = {}
        """Workers whose process may hang, and how that shows."""
        self._drain_numbers = count(1)
        self._drains: dict[int, _Drain] = {}
        """By number of the DRAIN_WORKER."""
        self._links = HandoffLinks(loop, slots, self._join_after_late_link)

    # State.

    def is_up(self, slot: Slot) -> bool:
        """Is it in the rotation of every proxy?"""
        return self._combined(slot) == UP

    def is_up_anywhere(self, slot: Slot) -> bool:
        """Is it in the rotation of at least one proxy?"""
        return self._views.is_up_anywhere(slot)

    def is_ready_anywhere(self, slot: Slot) -> bool:
        """Does at least one proxy find that it passes its health checks?"""
        return self._views.is_ready_anywhere(slot)

    def is_joined(self, slot: Slot) -> bool:
        """Is its process ready, and not about to leave?"""
        current = self._slots.current.get(slot)
        return current is not None and current.state is State.UP and slot not in self._draining

    def deciding(self, slot: Slot) -> list[int]:
        """The proxies whose views count: not those that are covered by others."""
        if slot[0] not in self._proxied:
            return [_WORKER_CHECKS]
        numbers = (proxy.plan.slot for proxy in self._slots.proxies if not proxy.at_rest)
        return [number for number in numbers if number not in self._slots.covered]

    def services_up(self) -> set[str]:
        """The services that have a worker in rotation, whichever proxy a client comes to."""
        unproxied = self._views.services_up_at(_WORKER_CHECKS) - self._proxied
        up = (proxy.plan.slot for proxy in self._slots.proxies if proxy.state is State.UP)
        accepting = [number for number in up if number not in self._slots.covered]
        if not accepting:
            return unproxied
        up_at_all = set.intersection(*map(self._views.services_up_at, accepting))
        return unproxied | (up_at_all & self._proxied)

    # What happens to workers and proxies, and what proxies are told of it.

    def join(self, child: Child) -> None:
        """The slot's process is ready, wherever it listens."""
        slot = slot_of(child)
        self._draining.discard(slot)
        self._held.pop(slot, None)
        self._joined.add(slot)
        if not self._is_proxied(child):
            self._worker_checks.join(*slot, can_answer=child.speaks_protocol)
            return
        for proxy in self._slots.proxies:
            self._join(proxy, child)

    def leave(self, child: Child) -> None:
        """The slot's process is gone, or is told to go."""
        slot = slot_of(child)
        self._views.forget(slot)
        self._draining.discard(slot)
        self._held.pop(slot, None)
        if slot not in self._joined:
            return
        self._joined.discard(slot)
        if self._is_proxied(child):
            for proxy in self._slots.proxies:
                proxy.send({"cmd": LEAVE, "service": slot[0], "slot": slot[1]})
        else:
            self._worker_checks.leave(*slot)

    def drain(self, child: Child, on_drained: Callable[[], None]) -> None:
        """Have all proxies stop picking this worker, and call `on_drained` when they have."""
        slot = slot_of(child)
        self._draining.add(slot)
        self._held.pop(slot, None)
        # The views so far are about this process, and not about the next one in its slot.
        self._views.forget(slot)
        if not self._is_proxied(child):
            self._worker_checks.drain(*slot)
            self._loop.call_soon(on_drained)
            return
        number = next(self._drain_numbers)
        timer = self._loop.call_later(_DRAIN_TIMEOUT_S, self._finish_drain, number)
        message = {
            "cmd": DRAIN_WORKER, "service": slot[0], "slot": slot[1], "seq": number,
            "finish": proxy_finish_s(child.stop_s),
        }  # fmt: skip
        # A proxy that is away need not be asked: its successor picks only workers that it is
        # told about.
        asked = {proxy for proxy in self._slots.proxies if proxy.send(message)}
        self._drains[number] = _Drain(timer, on_drained, asked)
        if not asked:
            self._loop.call_soon(self._finish_drain, number)

    def hold(self, child: Child, reason: str) -> None:
        """Its process may hang: nobody picks it until `release`, whatever its checks say."""
        slot = slot_of(child)
        self._held[slot] = reason
        if not self._is_proxied(child):
            self._worker_checks.hold(*slot, reason)
            return
        for proxy in self._slots.proxies:
            self._hold(proxy, slot)

    def release(self, child: Child) -> None:
        """It answers again: from now on its health checks decide."""
        slot = slot_of(child)
        self._held.pop(slot, None)
        if not self._is_proxied(child):
            self._worker_checks.release(*slot)
            return
        for proxy in self._slots.proxies:
            proxy.send({"cmd": RELEASE, "service": slot[0], "slot": slot[1]})

    def worker_spawned(self, child: Child) -> None:
        """A worker process was started; it may have links."""
        self._links.worker_spawned(child)

    def worker_exited(self, child: Child) -> None:
        """A worker process ended; it may have links."""
        self._links.worker_exited(child)

    def proxy_spawned(self, proxy: Child, up: Iterable[Slot]) -> None:
        """A new proxy was configured with the workers in `up` as up. Send it the links in use."""
        self._views.proxy_started(proxy.plan.slot, up)
        self._links.proxy_spawned(proxy)
        for child in self._slots.workers():
            if not child.links:
                continue
            self._links.send(proxy, child)
            if self._slots.is_current(child) and self.is_joined(slot_of(child)):
                self._join(proxy, child)
        for slot in self._held:
            if slot[0] in self._proxied:
                self._hold(proxy, slot)

    def proxy_exited(self, proxy: Child) -> None:
        """A proxy process ended: it picks no worker any more."""
        for number in tuple(self._drains):
            self._drain_answered(number, proxy)
        self._links.proxy_exited(proxy)

    def close(self) -> None:
        for drain in self._drains.values():
            drain.timer.cancel()
        self._links.close()

    # What proxies and worker checks report.

    def handle_message(self, proxy: Child, message: dict[str, Any]) -> bool:
        """Handle a message of a proxy. False: it is not about the rotation."""
        if message["cmd"] == WORKER_DRAINED:
            number = message.get("seq")
            if isinstance(number, int):
                self._drain_answered(number, proxy)
            return True
        if message["cmd"] == UNLINKED:
            self._links.reclaimed(message.get("link"), proxy)
            return True
        if message["cmd"] == CROWDED:
            ask_for_room(self._slots.current, message, self._held)
            return True
        if message["cmd"] not in (ROTATION, CHECKED):
            return False
        self._handle_view(proxy, message)
        return True

    def _handle_view(self, proxy: Child, message: dict[str, Any]) -> None:
        """A proxy says what it has found out about a worker."""
        service, slot, state = message.get("service"), message.get("slot"), message.get("state")
        if not isinstance(service, str) or not isinstance(slot, int):
            return
        if message["cmd"] == CHECKED:
            self._on_check((service, slot), proxy.plan.slot, bool(message.get("answered")))
        elif isinstance(state, str):
            reason = str(message.get("reason") or "")
            self._worker_changed((service, slot), state, reason, by=proxy.plan.slot)

    def worker_changed(self, service: str, number: int, state: str, reason: str) -> None:
        """The worker checks report that a worker came into the rotation or left it."""
        self._worker_changed((service, number), state, reason, by=_WORKER_CHECKS)

    def worker_checked(self, service: str, number: int, answered: bool) -> None:
        """The worker checks report that nothing, or something, has answered a check."""
        self._on_check((service, number), _WORKER_CHECKS, answered)

    def _worker_changed(self, slot: Slot, state: str, reason: str, *, by: int) -> None:
        current = self._slots.current.get(slot)
        if current is not None and current.state is not State.UP:
            # The proxy sent this before it was told that the process is gone.
            return
        before = self._combined(slot)
        self._views.report(slot, by, state)
        combined = self._combined(slot)
        where = f" at proxy/{by}" if len(self.deciding(slot)) > 1 and state != UP else ""
        why = f": {reason}" if reason else ""
        _log.log(
            logging.DEBUG if combined == before else logging.INFO,
            "%s/%d is %s%s%s", *slot, _SHOWN.get(state, state), where, why,
        )  # fmt: skip
        if combined != before:
            self._on_change(slot, combined)

    def _combined(self, slot: Slot) -> str:
        return self._views.combined(slot, self.deciding(slot))

    def _drain_answered(self, number: int, proxy: Child) -> None:
        """Note that this proxy no longer picks the worker."""
        if (drain := self._drains.get(number)) is not None:
            drain.unanswered.discard(proxy)
            if not drain.unanswered:
                self._finish_drain(number)

    def _finish_drain(self, number: int) -> None:
        if (drain := self._drains.pop(number, None)) is not None:
            drain.timer.cancel()
            drain.on_drained()

    def _is_proxied(self, child: Child) -> bool:
        return child.plan.service in self._proxied

    def _hold(self, proxy: Child, slot: Slot) -> None:
        message = {"cmd": HOLD, "service": slot[0], "slot": slot[1], "reason": self._held[slot]}
        proxy.send(message)

    def _join(self, proxy: Child, child: Child) -> None:
        service, slot = slot_of(child)
        message: dict[str, Any] = {"cmd": JOIN, "service": service, "slot": slot}
        if child.links:
            message["link"] = child.links[proxy.plan.slot].number
        elif child.plan.address is not None:
            message["address"] = str(child.plan.address)
        proxy.send(message)

    def _join_after_late_link(self, proxy: Child, slot: Slot, link: HandoffLink) -> None:
        """The proxy got the JOIN before the link that it names: send the JOIN again."""
        current = self._slots.current.get(slot)
        if current is not None and link in current.links and self.is_joined(slot):
            self._join(proxy, current)
            if slot in self._held:
                self._hold(proxy, slot)
