"""What is known of each worker's place in the rotation, whoever decides about it.

Owns the combined views: a worker is in the rotation if it is in that of every proxy that counts. In
place of a proxy, the worker checks have a view of their own where there is none. Asks nobody and
tells nobody: that is `rotation`.
"""

from collections.abc import Callable, Mapping
from typing import Final

from penstock_proxy.balancing.member_state import SHOWN
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.children.slots import Slots, member_key
from penstock_supervisor.config.model import Service
from penstock_supervisor.rotation.confirmations import Confirmations
from penstock_supervisor.rotation.holds import HoldCause, Holds
from penstock_supervisor.rotation.proxy_views import OUT, UP, ProxyViews, Recent

WORKER_CHECKS: Final = -1
"""Stands for the worker checks in place of a proxy's number, for services without a proxy. No
proxy has it: a new proxy begins without views, and must not take those of the checks along."""

WORDS: Final[dict[str, str]] = {one.value: word.value for one, word in SHOWN.items()}
"""The word for people, by a member state."""


class Places:
    """`services`: those of the moment, by name. `upstream_label`: what people call an upstream that
    is there now; empty: it is not."""

    def __init__(
        self,
        services: Mapping[str, Service],
        slots: Slots,
        upstream_label: Callable[[MemberKey], str],
    ) -> None:
        self._services = services
        self._slots = slots
        self._upstream_label = upstream_label
        self._views = ProxyViews()
        self._draining: set[MemberKey] = set()
        self._held = Holds()
        self._confirmations = Confirmations()

    def is_up(self, child: Child) -> bool:
        """Is it in the rotation of every proxy?"""
        return self._combined(member_key(child)) == UP

    def is_up_everywhere(self, member: MemberKey) -> bool:
        """Is this worker or upstream in the rotation of every proxy?"""
        return self._combined(member) == UP

    def is_up_anywhere(self, member: MemberKey) -> bool:
        """Is this worker or upstream in the rotation of at least one proxy?"""
        return self._views.is_up_anywhere(member)

    def take_ready_anywhere(self, child: Child) -> bool:
        """Does at least one proxy find that it passes its health checks, or did one since this
        was asked last?"""
        return self._views.take_ready_anywhere(member_key(child))

    def is_compared(self, child: Child) -> bool:
        """Is it held because its successor is compared with the others?"""
        return self._held.has(member_key(child), HoldCause.COMPARED)

    def has_fallen(self, child: Child) -> bool:
        """Has a proxy taken it out of its rotation, because of its checks or its traffic?"""
        return self._combined(member_key(child)) in OUT

    def ejection(self, child: Child) -> Recent | None:
        """Of one that its traffic alone has taken out: what it and all others had; else None."""
        key = member_key(child)
        return self._views.ejection(key, self.deciding(key[0]))

    def why_not_up(self, child: Child) -> str:
        """What its last check, or its traffic, has shown; empty: nothing bad."""
        return self._views.reason(member_key(child))

    def is_confirmed(self, child: Child) -> bool:
        """Is it in the rotation of every proxy, and has each found a check good since `confirm`?"""
        key = member_key(child)
        return self.is_up(child) and self._confirmations.has_all(key, self.deciding(key[0]))

    def is_asked(self, member: MemberKey) -> bool:
        """Is a good check still missing of those that were asked for? Of none that has left."""
        return self._confirmations.is_open(member, self.deciding(member[0]))

    def why_denied(self, member: MemberKey) -> str:
        """What was wrong at the last check that was asked for; empty: nothing is known of that."""
        return self._confirmations.why_denied(member)

    def is_joined(self, child: Child) -> bool:
        """Is its process ready, and not about to leave?"""
        return child.state is State.UP and member_key(child) not in self._draining

    def member_state(self, child: Child) -> str:
        """For people: whether it is in the rotation, and if not, why not."""
        key = member_key(child)
        if key in self._draining:
            return "draining"
        if key in self._held or not self.is_joined(child):
            return "down"
        state = self._combined(key)
        return WORDS.get(state, state) or "checking"

    def deciding(self, service: str) -> list[int]:
        """The proxies whose views count: not those that are covered by others."""
        if not self._has_proxy(service):
            return [WORKER_CHECKS]
        numbers = (proxy.plan.slot for proxy in self._slots.proxies if not proxy.at_rest)
        return [number for number in numbers if number not in self._slots.covered]

    def upstream_left(self, member: MemberKey) -> None:
        """It is none of the service's any more. As long as no other one serves, proxies may go on
        with it, and their views of it count."""
        self._confirmations.forget(member)
        self._forget_left(member)

    def _forget_left(self, member: MemberKey) -> None:
        """Forget it, if it is an upstream that has left, and nobody picks it any more."""
        is_there = self._slots.child_of(member) or self._upstream_label(member)
        if not is_there and not self._views.is_up_anywhere(member):
            self._views.forget(member)

    def _is_upstream(self, member: MemberKey) -> bool:
        """Does it count what a proxy says of this upstream? Also of one that has left, as long as a
        proxy may pick it."""
        return member in self._views or bool(self._upstream_label(member))

    def _label(self, member: MemberKey, child: Child | None) -> str:
        """For the log. A slot's name alone means its current worker."""
        if child is None:
            return self._upstream_label(member) or f"{member[0]}/{member[1]}"
        return child.name if self._slots.is_current(child) else f"{child.name} (pid {child.pid})"

    def services_up(self) -> set[str]:
        """The services that have a worker in rotation, whichever proxy a client comes to."""
        proxied = set(filter(self._has_proxy, self._services))
        unproxied = self._views.services_up_at(WORKER_CHECKS) - proxied
        up = (proxy.plan.slot for proxy in self._slots.proxies if proxy.state is State.UP)
        accepting = [number for number in up if number not in self._slots.covered]
        if not accepting:
            return unproxied
        up_at_all = set.intersection(*map(self._views.services_up_at, accepting))
        return unproxied | (up_at_all & proxied)

    def knows_all(self, proxy: int) -> bool:
        """Would the proxy with this number pick every member that all others would?"""
        members = [(name, number) for name, number in self._views if self._has_proxy(name)]
        return all(
            self._views.is_up_at(member, proxy)
            for member in members
            if self._combined(member) == UP
        )

    def _combined(self, member: MemberKey) -> str:
        return self._views.combined(member, self.deciding(member[0]))

    def _has_proxy(self, name: str) -> bool:
        # Of a service that is gone, a last message may come. A proxy ignores that, too.
        service = self._services.get(name)
        return service is None or service.has_proxy
