"""Which workers are in the rotation, and all messages to the proxies about it.

Under `ports` and `handoff` each proxy decides by itself. Under `shared` and `reuseport` there is
no proxy, and the supervisor's own worker checks decide. Both are told the same things: a process
is ready, gone, or about to leave. Both report which worker came into the rotation or left it. So
the rest of the supervisor does not need to know who decides, or how many proxies there are.

Each worker is a member of its own: a successor is added beside the process that it replaces, and
both can be in the rotation. A member is removed when its process is gone for good, and nothing is
left in its links.

Owns who is a member, and what the proxies are told. What is known of each is in `places`, the links
are owned by `handoff_links`, and the answers to DRAIN_WORKER by `drains`.
"""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from penstock_proxy.config import Health, Target
from penstock_proxy.messages import (
    ADD_MEMBER,
    CHECKED,
    CONFIRM,
    CONFIRMED,
    CROWDED,
    DRAIN_WORKER,
    HOLD,
    JOIN,
    LEAVE,
    RELEASE,
    REMOVE_MEMBER,
    ROTATION,
    UNLINKED,
    WORKER_DRAINED,
)
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import MemberKey, worker_weight
from penstock_supervisor.children.slots import Slots, member_key
from penstock_supervisor.children.stop_times import proxy_finish_s
from penstock_supervisor.config.model import Service
from penstock_supervisor.config.per_proxy import checks_of
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.drains import Drains
from penstock_supervisor.rotation.handoff_links import HandoffLinks, link_to
from penstock_supervisor.rotation.holds import HoldCause
from penstock_supervisor.rotation.places import WORDS, WORKER_CHECKS, Places
from penstock_supervisor.rotation.proxy_views import UP, Recent, is_recent
from penstock_supervisor.rotation.room import ask_for_room
from penstock_supervisor.rotation.worker_checks import WorkerChecks

_log = logging.getLogger("penstock.supervisor")


class Rotation(Places):
    """`on_change(child, state)` is called when the combined state of a worker changes. An upstream
    has no child."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: Mapping[str, Service],
        slots: Slots,
        worker_checks: WorkerChecks,
        on_change: Callable[[Child | None, str], None],
        on_check: Callable[[Child, int, bool], None] = lambda *_: None,
    ) -> None:
        """`services`: those of the moment, by name. `on_check(child, proxy, answered)`: see
        CHECKED in `penstock_proxy.messages`."""
        super().__init__(services, slots)
        self._loop = loop
        self._worker_checks = worker_checks
        self._on_change = on_change
        self._on_check = on_check
        self._members: dict[MemberKey, Child] = {}
        """All that the proxies, or the worker checks, know of. Not upstreams."""
        self._leaving: set[MemberKey] = set()
        """Members to be removed as soon as nothing is left in their links."""
        self._joined: set[MemberKey] = set()
        self._drains = Drains(loop)
        self._links = HandoffLinks(loop, slots, self._join_after_late_link)

    def targets(self) -> dict[str, list[Target]]:
        """All members with their state now, by service, for a proxy that starts. Without ports a
        worker joins only when the proxy has its link, which a later message brings."""
        targets: dict[str, list[Target]] = {}
        for (name, number), child in self._members.items():
            if (service := self._services.get(name)) is None:
                continue
            has_ports = service.has_ports
            targets.setdefault(name, []).append(
                Target(
                    member=number,
                    slot=child.plan.slot,
                    address=_address(child),
                    weight=worker_weight(service, child.plan.slot),
                    joined=has_ports and self.is_joined(child),
                    up=has_ports and self.is_up_anywhere((name, number)),
                    health=_own_health(child, service),
                )
            )
        return targets

    # What happens to workers and proxies, and what proxies are told of it.

    def add(self, child: Child) -> None:
        """It may be picked later: when it has joined, and has passed its first check."""
        key = member_key(child)
        self._members[key] = child
        slot = child.plan.slot
        if self._is_proxied(child):
            service = self._services[key[0]]
            more: dict[str, Any] = {"slot": slot, "weight": worker_weight(service, slot)}
            if (health := _own_health(child, service)) is not None:
                more["health"] = health.model_dump(mode="json")
            self._tell(ADD_MEMBER, key, **more, address=_address(child))
        else:
            self._worker_checks.add(key, slot, child.plan.health)

    def remove(self, child: Child) -> None:
        """It is gone for good."""
        self.leave(child)
        self._held.forget(member_key(child))
        if member_key(child) in self._members:
            self._leaving.add(member_key(child))
            self._remove_left()

    def forget(self, service: str) -> None:
        """Nothing is left of a service that is removed. Of links to it, nobody takes back what is
        in them any more: perhaps there is no proxy."""
        self._links.forget(service)
        gone = {key for key in (*self._members, *self._views, *self._held) if key[0] == service}
        for key in gone:
            self._views.forget(key)
            self._members.pop(key, None)
            self._held.forget(key)
            self._confirmations.forget(key)
        for keys in (self._leaving, self._joined, self._draining):
            keys.difference_update(gone)

    def join(self, child: Child) -> None:
        """Its process is ready, wherever it listens."""
        key = member_key(child)
        self._draining.discard(key)
        self._held.process_changed(key)
        self._joined.add(key)
        if not self._is_proxied(child):
            self._worker_checks.join(key, can_answer=child.speaks_protocol)
            if key in self._held:
                self._worker_checks.hold(key, self._held.reason(key))
            return
        for proxy in self._slots.proxies:
            self._join(proxy, child)

    def leave(self, child: Child) -> None:
        """Its process is gone, or is told to go."""
        key = member_key(child)
        self._views.forget(key)
        self._held.process_changed(key)
        self._confirmations.forget(key)
        if key not in self._joined:
            return
        self._joined.discard(key)
        if self._is_proxied(child):
            self._tell(LEAVE, key)
        else:
            self._worker_checks.leave(key)

    def drain(self, child: Child, on_drained: Callable[[], None]) -> None:
        """Have all proxies stop picking this worker, and call `on_drained` when they have."""
        key = member_key(child)
        self._draining.add(key)
        self._held.forget(key)
        self._confirmations.forget(key)
        # It is in no rotation from now on, whatever was reported before.
        self._views.forget(key)
        if not self._is_proxied(child):
            self._worker_checks.drain(key)
            self._loop.call_soon(on_drained)
            return
        finish_s = proxy_finish_s(child.stop_s)
        self._drains.begin(
            lambda number: self._tell(DRAIN_WORKER, key, seq=number, finish=finish_s), on_drained
        )

    def hold(self, child: Child, reason: str, cause: HoldCause = HoldCause.DOUBTED) -> None:
        """Nobody picks it until `release`, whatever its checks say."""
        key = member_key(child)
        self._held.add(key, cause, reason)
        if self._is_proxied(child):
            self._tell(HOLD, key, reason=reason)
        else:
            self._worker_checks.hold(key, reason)

    def release(self, child: Child, cause: HoldCause = HoldCause.DOUBTED) -> None:
        """If nothing else holds it, from now on its health checks decide."""
        key = member_key(child)
        if not self._held.remove(key, cause):
            return
        if self._is_proxied(child):
            self._tell(RELEASE, key)
        else:
            self._worker_checks.release(key)

    def confirm(self, child: Child, then: Callable[[], None]) -> None:
        """Have it checked once more by everybody who decides. `then` is called when one of them
        has answered: see `is_confirmed`."""
        self.ask(member_key(child), then)

    def ask(self, member: MemberKey, then: Callable[[], None]) -> None:
        """As `confirm`, of any worker or upstream; see `is_asked` and `why_denied`."""
        number = self._confirmations.begin(member, then)
        if self._has_proxy(member[0]):
            self._tell(CONFIRM, member, seq=number)
        else:
            answer = partial(self._confirmations.answered, member, number, by=WORKER_CHECKS)
            self._worker_checks.confirm(member, answer)

    def worker_spawned(self, child: Child) -> None:
        """A worker process was started; it may have links."""
        self._links.worker_spawned(child)

    def worker_exited(self, child: Child) -> None:
        """A worker process ended; it may have links."""
        self._links.worker_exited(child)

    def proxy_spawned(self, proxy: Child, up: Iterable[MemberKey]) -> None:
        """A new proxy was configured with the members in `up` as up. Send it the links in use."""
        self._views.proxy_started(proxy.plan.slot, up)
        self._links.proxy_spawned(proxy)
        for child in self._slots.workers():
            if child.links:
                self._links.send(proxy, child)
                if self.is_joined(child):
                    self._join(proxy, child)
        for key in self._held:
            if self._has_proxy(key[0]):
                self._hold(proxy, key)
        for (service, member), number in self._confirmations.proxy_started(proxy.plan.slot):
            if self._has_proxy(service):
                proxy.send({"cmd": CONFIRM, "service": service, "member": member, "seq": number})

    def proxy_exited(self, proxy: Child) -> None:
        """A proxy process ended: it picks no worker any more."""
        self._drains.proxy_exited(proxy)
        self._links.proxy_exited(proxy)

    def close(self) -> None:
        self._drains.close()
        self._links.close()

    # What proxies and worker checks report.

    def handle_message(self, proxy: Child, message: dict[str, Any]) -> bool:
        """Handle a message of a proxy. False: it is not about the rotation."""
        if message["cmd"] == WORKER_DRAINED:
            self._drains.answered(message.get("seq"), proxy)
            return True
        if message["cmd"] == UNLINKED:
            self._links.reclaimed(message.get("link"), proxy)
            self._remove_left()
            return True
        if message["cmd"] == CROWDED:
            ask_for_room(self._slots.workers(), message, self._held)
            return True
        if message["cmd"] not in (ROTATION, CHECKED, CONFIRMED):
            return False
        self._handle_view(proxy, message)
        return True

    def _handle_view(self, proxy: Child, message: dict[str, Any]) -> None:
        """A proxy says what it has found out about a worker or an upstream."""
        service, number, state = message.get("service"), message.get("member"), message.get("state")
        if not isinstance(service, str) or not isinstance(number, int):
            return
        if message["cmd"] == CHECKED:
            answered = bool(message.get("answered"))
            self._worker_checked((service, number), answered, by=proxy.plan.slot)
        elif message["cmd"] == CONFIRMED:
            answer = message.get("seq")
            reason = str(message.get("reason") or "")
            self._confirmations.answered((service, number), answer, reason, by=proxy.plan.slot)
        elif isinstance(state, str):
            reason = str(message.get("reason") or "")
            recent = message.get("recent")
            recent = recent if is_recent(recent) else ()
            self._worker_changed((service, number), state, reason, recent, by=proxy.plan.slot)

    def worker_changed(self, member: MemberKey, state: str, reason: str) -> None:
        """The worker checks report that a worker came into the rotation or left it."""
        self._worker_changed(member, state, reason, by=WORKER_CHECKS)

    def worker_checked(self, member: MemberKey, answered: bool) -> None:
        """The worker checks report that nothing, or something, has answered a check."""
        self._worker_checked(member, answered, by=WORKER_CHECKS)

    def _worker_checked(self, member: MemberKey, answered: bool, *, by: int) -> None:
        if (child := self._slots.child_of(member)) is not None:
            self._on_check(child, by, answered)

    def _worker_changed(
        self, member: MemberKey, state: str, reason: str, recent: Recent = (), *, by: int
    ) -> None:
        child = self._slots.child_of(member)
        service = self._services.get(member[0])
        if service is None or not (self.is_joined(child) if child else service.upstreams):
            # The proxy sent this before it was told that the process is gone, or has to go.
            return
        before = self._combined(member)
        self._views.report(member, by, state, reason, recent)
        combined = self._combined(member)
        where = f" at proxy/{by}" if len(self.deciding(member[0])) > 1 and state != UP else ""
        why = f": {reason}" if reason else ""
        is_held = self._held.is_compared(member) and reason == self._held.reason(member)
        word = "held" if is_held else WORDS.get(state, state)
        _log.log(
            logging.DEBUG if combined == before else logging.INFO,
            "%s is %s%s%s", self._label(member, child), word, where, why,
        )  # fmt: skip
        if combined != before:
            self._on_change(child, combined)

    def _label(self, member: MemberKey, child: Child | None) -> str:
        """For the log. A slot's name alone means its current worker."""
        if child is None:
            return f"{member[0]}/{member[1]}"
        return child.name if self._slots.is_current(child) else f"{child.name} (pid {child.pid})"

    def _remove_left(self) -> None:
        """Remove the members that are gone for good, as soon as nothing is left in their links.
        A proxy takes back what is left there on behalf of the member."""
        for key in [one for one in self._leaving if not self._links.is_reclaiming(one)]:
            self._leaving.discard(key)
            self._draining.discard(key)
            child = self._members.pop(key)
            if self._is_proxied(child):
                self._tell(REMOVE_MEMBER, key)
            else:
                self._worker_checks.remove(key)

    def _is_proxied(self, child: Child) -> bool:
        return self._has_proxy(child.plan.service)

    def _tell(self, command: str, member: MemberKey, **more: Any) -> set[Child]:
        """Send a message about a member to all proxies. Returns those that it was sent to."""
        message = {"cmd": command, "service": member[0], "member": member[1], **more}
        return {proxy for proxy in self._slots.proxies if proxy.send(message)}

    def _hold(self, proxy: Child, member: MemberKey) -> None:
        service, number = member
        reason = self._held.reason(member)
        proxy.send({"cmd": HOLD, "service": service, "member": number, "reason": reason})

    def _join(self, proxy: Child, child: Child) -> None:
        service, number = member_key(child)
        message: dict[str, Any] = {"cmd": JOIN, "service": service, "member": number}
        if child.links:
            if (link := link_to(proxy, child)) is None:
                return
            message["link"] = link.number
        elif child.plan.reached_at is not None:
            message["address"] = _address(child)
        if (service, number) in self._held:
            message["held"] = self._held.reason((service, number))
        proxy.send(message)

    def _join_after_late_link(self, proxy: Child, member: MemberKey, link: HandoffLink) -> None:
        """The proxy got the JOIN before the link that it names: send the JOIN again."""
        child = self._slots.child_of(member)
        if child is not None and link in child.links and self.is_joined(child):
            self._join(proxy, child)


def _own_health(child: Child, service: Service) -> Health | None:
    """How it is checked, if it is not as its service is by now; else None."""
    health = child.plan.health
    return None if health == checks_of(service) else health


def _address(child: Child) -> str:
    """Where proxies connect to it; empty if its connections come over a link."""
    return "" if child.plan.reached_at is None else str(child.plan.reached_at)
