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
from asyncio import AbstractEventLoop, TaskGroup, TimerHandle
from bisect import insort
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.config_parts import parts_of
from penstock_proxy.messages import ACCEPT, CONFIGURE, COVER, PING, UNCOVER
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.live_settings import use_settings
from penstock_supervisor.children.liveness import ASK_EVERY_S, ASLEEP_S, Life, Liveness
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.certificate_reload import CertificateReload
from penstock_supervisor.rollout.proxy_updates import ProxyUpdates
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.fd_delivery import deliver
from penstock_supervisor.rotation.rotation import Rotation

if TYPE_CHECKING:
    from asyncio import Task

HUNG_S: Final = 10.0
"""A proxy that is silent for so long is killed. It answers a ping between any two events, none of
which takes it a tenth of a second, so one that is only busy is far from it. Its clients have got
nothing for as long, and most of them still wait."""

_STARTS: Final = (State.DOWN, State.STARTING, State.LATE, State.BACKOFF)

_log = logging.getLogger("penstock.supervisor")


def _slot(proxy: Child) -> int:
    return proxy.plan.slot


def _not_added(plan: ChildPlan) -> Child:
    raise AssertionError(plan.name)


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
        self.updates = ProxyUpdates(resources, slots, rotation)
        self.leaving: set[Child] = set()
        """Proxies that are not needed any more, and have not ended yet."""
        self._newcomers: set[Child] = set()
        """Proxies that were added while the run lasts, and do not accept yet."""
        self._argv: Sequence[str] = ()
        self._make: Callable[[ChildPlan], Child] = _not_added

    def add(
        self, argv: Sequence[str], make: Callable[[ChildPlan], Child], tasks: TaskGroup
    ) -> None:
        self._argv, self._make = argv, make
        self._slots.proxies.extend(map(make, self._resources.proxy_plans(argv)))
        self._reload_task = tasks.create_task(self.certificate_reload.run())

    # All of them.

    def send_to_all(self, message: dict[str, Any]) -> bool:
        """Send a message to every proxy that has a channel. False if none has."""
        return bool([proxy for proxy in self._slots.proxies if proxy.send(message)])

    def send_each_to_all(self, messages: Sequence[dict[str, Any]]) -> None:
        """Send these messages to every proxy that has a channel, with nothing between them."""
        for proxy in self._slots.proxies:
            proxy.send_each(messages)

    def accept(self) -> None:
        """The sockets listen: every proxy may accept, and every later one as well."""
        self._accepting = True
        self.send_to_all({"cmd": ACCEPT})
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

    # Their number, and what they are started with.

    def use_plans(self) -> None:
        """What is started again from now on gets what is in force."""
        for proxy in self._slots.proxies:
            use_settings(proxy, self._resources.proxy_plan(self._argv, proxy.plan.slot))

    def use_number(self) -> None:
        """Start and stop proxies until there are as many as are configured. Where one still ends
        whose slot is needed again, nobody waits: its successor starts after it (`forget_ended`).

        One that goes is covered for ever: its sockets stay open, and the others accept from them,
        because what waits in their queues would be lost. One that comes is covered until it can
        take clients (`begin`): under handoff that is when all workers have a link to it.
        """
        wanted = self._resources.proxies_wanted
        present = {proxy.plan.slot: proxy for proxy in self._slots.proxies}
        for slot, proxy in present.items():
            if slot >= wanted and proxy not in self.leaving:
                _log.info("%s is not needed any more and ends", proxy.name)
                self._newcomers.discard(proxy)
                self.leaving.add(proxy)
                self._cover(proxy)
                proxy.stop()
        for slot in range(wanted):
            if slot not in present:
                proxy = self._make(self._resources.proxy_plan(self._argv, slot))
                insort(self._slots.proxies, proxy, key=_slot)
                self._newcomers.add(proxy)
                self._slots.covered.add(slot)
                proxy.start()

    def newcomers_started(self) -> bool:
        """Has every proxy that came got ready, or failed?"""
        return all(proxy.state not in _STARTS for proxy in self._newcomers)

    def newcomers_failed(self) -> tuple[str, ...]:
        """Those that came and could not be started, in words."""
        return tuple(
            f"{proxy.name} could not be started: {proxy.history.last_exit_reason}"
            for proxy in self._newcomers
            if proxy.state is not State.UP
        )

    def forget_ended(self, proxy: Child) -> Child | None:
        """Forget this one if it is not needed and has ended. Returns another one: all proxies
        count together, and their sums must not go down.

        Its slot may be needed again: a change was taken back, or the next one wants more. Then
        another one is started.
        """
        if proxy not in self.leaving or not proxy.at_rest or not self._accepting:
            return None
        self.leaving.discard(proxy)
        self._slots.proxies.remove(proxy)
        if proxy.plan.slot < self._resources.proxies_wanted:
            self.use_number()
        return next(iter(self._slots.proxies), None)

    def begin(self) -> None:
        """Let proxies that came accept, if they would pick all that the others pick."""
        for proxy in tuple(self._newcomers):
            slot = proxy.plan.slot
            if proxy.state is State.UP and self._rotation.knows_all(slot):
                self._newcomers.discard(proxy)
                for listeners in self._resources.listeners.values():
                    listeners.listen_for(slot)
                for covered in self._slots.covered - {slot}:
                    self._send_listeners(covered, proxy)
                proxy.send({"cmd": ACCEPT})
                _log.info("%s takes its share of the clients", proxy.name)
                self._uncover(proxy)

    def cover_again(self) -> None:
        """There are new listeners: proxies that are away have some of them, too."""
        for slot in self._slots.covered:
            for proxy in self._slots.proxies:
                if proxy.plan.slot != slot and proxy not in self._newcomers:
                    self._send_listeners(slot, proxy)

    # One of them.

    def spawned(self, proxy: Child) -> None:
        """A new process: send it the configuration and the state of everything."""
        try:
            self._introduce(proxy)
        except Exception:  # noqa: BLE001
            # A fault of ours. A process that nobody tells anything would only wait; killed, it is
            # started again, later and later.
            _log.exception("%s: a bug of penstock", proxy.name)
            proxy.kill("it could not be told what there is")

    def _introduce(self, proxy: Child) -> None:
        rotation = self._rotation
        config = self._resources.proxy_config(
            proxy.plan.slot, rotation.targets(), rotation.is_up_anywhere
        )
        proxy.send_each((*parts_of(config), {"cmd": CONFIGURE}))
        for message in self.certificate_reload.messages():
            proxy.send(message)
        rotation.proxy_spawned(
            proxy,
            [(service.name, target.member) for service in config.services
             for target in service.targets if target.up],
        )  # fmt: skip
        if self._accepting and proxy not in self._newcomers:
            proxy.send({"cmd": ACCEPT})
            for slot in self._slots.covered - {proxy.plan.slot}:
                self._send_listeners(slot, proxy)

    def ready(self, proxy: Child) -> None:
        """It accepts from its own sockets again, so the others stop covering it."""
        if proxy not in self._newcomers:
            self._uncover(proxy)

    def _uncover(self, proxy: Child) -> None:
        slot = proxy.plan.slot
        if slot in self._slots.covered:
            self._slots.covered.discard(slot)
            self.send_to_all({"cmd": UNCOVER, "proxy": slot})

    def exited(self, proxy: Child) -> None:
        """Its process ended: the others cover it."""
        self.updates.exited(proxy)
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
        self.begin()
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
            proxy.kill(f"it has not answered for {HUNG_S:g} s")

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
        for name in self._resources.listeners:
            message = {"cmd": COVER, "service": name, "proxy": slot}
            for one in self._resources.proxy_listeners(name, slot):
                if (listener := one.proxy_socket(slot)) is not None:
                    deliver(self._loop, to, message, listener, lambda: slot in self._slots.covered)
