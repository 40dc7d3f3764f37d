"""The proxies of a run, as one: what all of them are told, and what the end of one is to others.

Every proxy serves every service, by itself: it has its own share of the clients, which the
kernel deals out, checks the workers itself, and knows nothing of the other proxies. What
concerns more than one is here. A proxy that is away, because it ended and its successor is
not ready yet, or for good, or because it does not answer, is *covered*: the others accept
from its sockets as well as their own, so that whoever is dealt to it is served at once, and
nothing that waits is lost.

It does not know who is in the rotation: that is `rotation`, which talks to the proxies too.
"""

import logging
from asyncio import AbstractEventLoop, TaskGroup, TimerHandle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.messages import ACCEPT, CONFIGURE, COVER, PING, UNCOVER
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.certificate_reload import CertificateReload
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.fd_delivery import deliver
from penstock_supervisor.rotation.rotation import Rotation

if TYPE_CHECKING:
    from asyncio import Task

PING_S: Final = 1.0
"""How often a proxy is asked whether it is there."""
MAX_UNANSWERED: Final = 3
"""Questions in a row without an answer: then it is stuck. One that is merely busy answers the
next one; and what the others take from a socket is as well served by them."""

_log = logging.getLogger("penstock.supervisor")


class Proxies:
    """Made once for a run; `add` fills the slots' list of them."""

    def __init__(
        self, loop: AbstractEventLoop, resources: Resources, slots: Slots, rotation: Rotation
    ) -> None:
        self._loop = loop
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self.certificate_reload = CertificateReload(resources.config.services, self.tell)
        self._reloading: Task[None] | None = None
        self._accepting = False
        self._ping_timer: TimerHandle | None = None
        self._unanswered: Counter[Child] = Counter()

    def add(
        self, argv: Sequence[str], make: Callable[[ChildPlan], Child], tasks: TaskGroup
    ) -> None:
        self._slots.proxies.extend(map(make, self._resources.proxy_plans(argv)))
        self._reloading = tasks.create_task(self.certificate_reload.run())

    # What is asked of all of them.

    def tell(self, order: dict[str, Any]) -> bool:
        """Send it to all that are there; False if nobody is."""
        return bool([one for one in self._slots.proxies if one.send(order)])

    def accept(self) -> None:
        """The sockets listen: from now on every proxy accepts, and every later one."""
        self._accepting = True
        self.tell({"cmd": ACCEPT})
        if len(self._slots.proxies) > 1:
            self._ping_timer = self._loop.call_later(PING_S, self._ping)

    def stop(self, at_most_s: float | None) -> None:
        """Nobody covers for anybody any more: all of them finish and leave."""
        self._accepting = False
        if self._reloading is not None:
            self._reloading.cancel()
        self.close()
        for proxy in self._slots.proxies:
            proxy.stop(at_most_s)

    def close(self) -> None:
        """Ask no more."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    @property
    def at_rest(self) -> bool:
        return all(proxy.at_rest for proxy in self._slots.proxies)

    @property
    def can_accept(self) -> bool:
        """Is there one for whoever comes? With one away the others cover it."""
        proxies = self._slots.proxies
        covered = self._slots.covered
        return not proxies or any(
            one.state is State.UP and one.plan.slot not in covered for one in proxies
        )

    # What happens to one of them.

    def spawned(self, proxy: Child) -> None:
        """A new process: it starts informed."""
        current = {slot: current.plan.address for slot, current in self._slots.current.items()}
        rotation = self._rotation
        config = self._resources.proxy_config(
            proxy.plan.slot, current, rotation.is_joined, rotation.is_up_anywhere
        )
        proxy.send({"cmd": CONFIGURE, "config": config.model_dump(mode="json")})
        for order in self.certificate_reload.orders():
            proxy.send(order)
        rotation.proxy_spawned(
            proxy,
            [(one.name, target.slot) for one in config.services for target in one.targets
             if target.up],
        )  # fmt: skip
        if self._accepting:
            proxy.send({"cmd": ACCEPT})
            for slot in self._slots.covered - {proxy.plan.slot}:
                self._cover(slot, proxy)

    def ready(self, proxy: Child) -> None:
        """It accepts from its own sockets again, and the others need not."""
        slot = proxy.plan.slot
        if slot in self._slots.covered:
            self._slots.covered.discard(slot)
            self.tell({"cmd": UNCOVER, "proxy": slot})

    def exited(self, proxy: Child) -> None:
        """Its process is."""
        self._rotation.proxy_exited(proxy)
        self._unanswered.pop(proxy, None)
        self._went_away(proxy)

    def answered(self, proxy: Child) -> None:
        """It is there."""
        if self._unanswered.pop(proxy, 0) >= MAX_UNANSWERED and proxy.state is State.UP:
            _log.warning("%s answers again", proxy.name)
            self.ready(proxy)

    def gave_up(self, proxy: Child) -> bool:
        """Nobody starts it again. True if it was the last."""
        left = [one for one in self._slots.proxies if not one.at_rest]
        if left:
            others = ", ".join(one.name for one in left)
            _log.critical("%s is not started again; %s take its clients", proxy.name, others)
        return not left

    def _ping(self) -> None:
        self._ping_timer = self._loop.call_later(PING_S, self._ping)
        for proxy in self._slots.proxies:
            if proxy.state is not State.UP:
                continue
            if self._unanswered[proxy] == MAX_UNANSWERED:
                _log.error("%s does not answer; the others take its new clients", proxy.name)
                self._went_away(proxy)
            self._unanswered[proxy] += 1
            proxy.send({"cmd": PING})

    def _went_away(self, proxy: Child) -> None:
        slot = proxy.plan.slot
        self._slots.covered.add(slot)
        if self._accepting:
            for other in self._slots.proxies:
                if other is not proxy:
                    self._cover(slot, other)

    def _cover(self, slot: int, by: Child) -> None:
        for name, listeners in self._resources.listeners.items():
            if (listener := listeners.proxy_socket(slot)) is not None:
                order = {"cmd": COVER, "service": name, "proxy": slot}
                deliver(self._loop, by, order, listener, lambda: slot in self._slots.covered)
