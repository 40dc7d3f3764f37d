"""All proxies of a run: messages to all of them, and who covers for a proxy that is away.

Every proxy serves every service by itself. The kernel gives it its share of the clients, it
checks the workers itself, and it knows nothing of the other proxies. This module owns what
concerns more than one of them.

A proxy is away if it has ended and its successor is not ready, if it is in a crash loop, or if it
does not answer. Then it is *covered*: the others accept from its listeners as well as from their
own. So a client that the kernel gives to that proxy is served at once, and no waiting connection
is lost. A proxy that still does not answer is killed, and started again as after any other exit: it
serves nobody, and without others nobody is served.

Must not know which workers are in the rotation: `rotation` does, and sends messages as well.

See docs/decisions/0006-one-listener-for-each-proxy.md.
"""

import logging
import signal
from asyncio import AbstractEventLoop, TaskGroup, TimerHandle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.messages import ACCEPT, CONFIGURE, COVER, PING, UNCOVER
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import ASK_EVERY_S, ASLEEP_S, Life, Liveness
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.certificate_reload import CertificateReload
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.fd_delivery import deliver
from penstock_supervisor.rotation.rotation import Rotation

if TYPE_CHECKING:
    from asyncio import Task

HUNG_S: Final = 10.0
"""A proxy that is silent for so long is killed. It answers a ping between any two events, none of
which takes it a tenth of a second, so one that is only busy is far from it. Its clients have got
nothing for as long, and most of them still wait."""

_log = logging.getLogger("penstock.supervisor")


class Proxies:
    """Made once for a run; `add` makes the proxies themselves, and puts them into `slots`."""

    def __init__(
        self, loop: AbstractEventLoop, resources: Resources, slots: Slots, rotation: Rotation
    ) -> None:
        self._loop = loop
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self.certificate_reload = CertificateReload(resources.config.services, self.send_to_all)
        self._reload_task: Task[None] | None = None
        self._accepting = False
        self._ping_timer: TimerHandle | None = None
        self._ping_due = 0.0
        self._liveness: dict[Child, Liveness] = {}
        """Of the present process of each proxy that accepts."""
        self._doubted_at: dict[Child, float] = {}
        """Proxies that do not answer, and since when."""

    def add(
        self, argv: Sequence[str], make: Callable[[ChildPlan], Child], tasks: TaskGroup
    ) -> None:
        self._slots.proxies.extend(map(make, self._resources.proxy_plans(argv)))
        self._reload_task = tasks.create_task(self.certificate_reload.run())

    # All of them.

    def send_to_all(self, message: dict[str, Any]) -> bool:
        """Send a message to every proxy that has a channel. False if none has."""
        return bool([proxy for proxy in self._slots.proxies if proxy.send(message)])

    def accept(self) -> None:
        """The sockets listen: every proxy may accept, and every later one as well."""
        self._accepting = True
        self.send_to_all({"cmd": ACCEPT})
        if self._slots.proxies:
            self._schedule_ping()

    def stop(self, at_most_s: float | None) -> None:
        """Drain and stop all proxies. From now on no proxy covers for another."""
        self._accepting = False
        if self._reload_task is not None:
            self._reload_task.cancel()
        self.close()
        for proxy in self._slots.proxies:
            proxy.stop(at_most_s)

    def close(self) -> None:
        """Send no more pings."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    @property
    def at_rest(self) -> bool:
        return all(proxy.at_rest for proxy in self._slots.proxies)

    @property
    def can_accept(self) -> bool:
        """Is there a proxy that accepts? It covers those that are away. True without proxies."""
        return not self._slots.proxies or any(map(self._accepts, self._slots.proxies))

    # One of them.

    def spawned(self, proxy: Child) -> None:
        """A new process: send it the configuration and the state of everything."""
        current = {slot: current.plan.address for slot, current in self._slots.current.items()}
        rotation = self._rotation
        config = self._resources.proxy_config(
            proxy.plan.slot, current, rotation.is_joined, rotation.is_up_anywhere
        )
        proxy.send({"cmd": CONFIGURE, "config": config.model_dump(mode="json")})
        for message in self.certificate_reload.messages():
            proxy.send(message)
        rotation.proxy_spawned(
            proxy,
            [(service.name, target.slot) for service in config.services
             for target in service.targets if target.up],
        )  # fmt: skip
        if self._accepting:
            proxy.send({"cmd": ACCEPT})
            for slot in self._slots.covered - {proxy.plan.slot}:
                self._send_listeners(slot, proxy)

    def ready(self, proxy: Child) -> None:
        """It accepts from its own sockets again, so the others stop covering it."""
        slot = proxy.plan.slot
        if slot in self._slots.covered:
            self._slots.covered.discard(slot)
            self.send_to_all({"cmd": UNCOVER, "proxy": slot})

    def exited(self, proxy: Child) -> None:
        """Its process ended: the others cover it."""
        self._rotation.proxy_exited(proxy)
        self._liveness.pop(proxy, None)
        self._doubted_at.pop(proxy, None)
        self._cover(proxy)

    def answered(self, proxy: Child) -> None:
        """It answered a ping."""
        if (liveness := self._liveness.get(proxy)) is not None:
            liveness.answered()
            self._judge(proxy, liveness)

    def gave_up(self, proxy: Child) -> None:
        """It ended too often, and is started again later, or never."""
        others = [one for one in self._slots.proxies if one is not proxy and one.state is State.UP]
        names = ", ".join(one.name for one in others)
        if names:
            _log.error("%s is away; %s take its clients", proxy.name, names)
        else:
            _log.error("%s is away, and no other proxy is ready: clients wait", proxy.name)

    def _schedule_ping(self) -> None:
        self._ping_due = self._loop.time() + ASK_EVERY_S
        self._ping_timer = self._loop.call_later(ASK_EVERY_S, self._ping)

    def _ping(self) -> None:
        now = self._loop.time()
        was_asleep = now - self._ping_due > ASLEEP_S
        self._schedule_ping()
        for proxy in self._slots.proxies:
            if proxy.state is not State.UP:
                continue
            liveness = self._liveness.setdefault(proxy, Liveness(hung_s=HUNG_S))
            if was_asleep:
                liveness.begin_again(now)
            self._judge(proxy, liveness)
            liveness.asked(now)
            proxy.send({"cmd": PING})

    def _judge(self, proxy: Child, liveness: Liveness) -> None:
        now, before = self._loop.time(), liveness.life
        life = liveness.judge(now)
        if life is before or proxy.state is not State.UP:
            return
        if life is Life.ALIVE:
            silent_s = now - self._doubted_at.pop(proxy, now)
            _log.warning("%s answers again after %.0f s", proxy.name, silent_s)
            self.ready(proxy)
            return
        if before is Life.ALIVE:
            self._doubt(proxy, now - liveness.silent_s(now))
        if life is Life.HUNG:
            _log.error("%s has not answered for %.0f s and is killed", proxy.name, HUNG_S)
            proxy.signal(signal.SIGKILL)

    def _doubt(self, proxy: Child, since: float) -> None:
        self._doubted_at[proxy] = since
        others = [one for one in self._slots.proxies if one is not proxy and self._accepts(one)]
        what = "the others take its new clients" if others else "no client is served"
        _log.error("%s does not answer; %s", proxy.name, what)
        self._cover(proxy)

    def _accepts(self, proxy: Child) -> bool:
        return proxy.state is State.UP and proxy.plan.slot not in self._slots.covered

    def _cover(self, away: Child) -> None:
        """This proxy is away: the others accept from its listeners."""
        slot = away.plan.slot
        self._slots.covered.add(slot)
        if self._accepting:
            for proxy in self._slots.proxies:
                if proxy is not away:
                    self._send_listeners(slot, proxy)

    def _send_listeners(self, slot: int, to: Child) -> None:
        """Send a proxy the listeners of the covered slot."""
        for name, listeners in self._resources.listeners.items():
            if (listener := listeners.proxy_socket(slot)) is not None:
                message = {"cmd": COVER, "service": name, "proxy": slot}
                deliver(self._loop, to, message, listener, lambda: slot in self._slots.covered)
