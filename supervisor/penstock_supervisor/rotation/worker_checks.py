"""Health checks of the workers that have no proxy.

Under `shared` and `reuseport` no proxy picks workers, but the supervisor still checks, reports
and acts on their health. It uses the proxy's pool and health checker. Only the probe differs:
the worker gets one end of a socket pair over its channel, as if a client had connected, and the
request is sent on the other end. If the health check has no path, an answer to a PING on the
channel is enough. A program that never sends on its channel cannot be checked, and is up as
long as it runs.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, Final

from penstock_proxy import metrics
from penstock_proxy.balancing import probes
from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import HEALTHY, ProbeResult
from penstock_proxy.config import Health, Target
from penstock_proxy.metrics import ServiceCounters
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.config.model import Service
from penstock_worker import contract

_TICK_S: Final = 0.25

Send = Callable[[MemberKey, Any, socket.socket | None], bool]
"""member, message, handle → False if the worker is away."""
OnChange = Callable[[MemberKey, str, str], None]
"""member, member state, reason."""
OnAnswer = Callable[[MemberKey, bool], None]
"""member, whether anything has answered a check."""


class WorkerChecks:
    """All services that have no proxy. Their workers are added and removed one by one."""

    def __init__(
        self,
        services: Iterable[Service],
        send: Send,
        on_change: OnChange,
        on_answer: OnAnswer = lambda *_: None,
    ) -> None:
        self._make = partial(_CheckedService, send=send, on_change=on_change, on_answer=on_answer)
        self._services = {service.name: self._make(service) for service in services}
        self._group: asyncio.TaskGroup | None = None
        """While `run` runs."""

    def use(self, service: Service) -> None:
        """Check workers of this service that are added from now on as it says. It may be new."""
        if (checked := self._services.get(service.name)) is not None:
            checked.configure(service)
            return
        checked = self._services[service.name] = self._make(service)
        if self._group is not None:
            checked.start(self._group)

    def remove_service(self, name: str) -> None:
        """None of its workers is left. Nothing happens if it was never checked here."""
        if (checked := self._services.pop(name, None)) is not None:
            checked.stop()

    def add(self, member: MemberKey, slot: int, health: Health | None = None) -> None:
        """Add a worker of this slot. It is checked from `join` on, and as its service says unless
        it has its own `health`. ValueError: it is there."""
        self._services[member[0]].add(member[1], slot, health)

    def set_health(self, member: MemberKey, health: Health | None) -> None:
        """Check it in this way from now on; None: as its service says. Nothing happens if it is not
        there."""
        self._services[member[0]].set_health(member[1], health)

    def remove(self, member: MemberKey) -> None:
        """It is checked and shown no more. KeyError: there is no such member."""
        self._services[member[0]].remove(member[1])

    def join(self, member: MemberKey, *, can_answer: bool) -> None:
        """Its process is ready. `can_answer`: it understands messages on its channel."""
        self._services[member[0]].join(member[1], can_answer)

    def leave(self, member: MemberKey) -> None:
        """Its process is gone, or told to go."""
        self._services[member[0]].pool.leave(member[1])

    def drain(self, member: MemberKey) -> None:
        """The worker finishes what it has and accepts no more."""
        self._services[member[0]].pool.drain(member[1])

    def hold(self, member: MemberKey, reason: str) -> None:
        """Its process may hang: it is down until `release`."""
        self._services[member[0]].pool.hold(member[1], reason)

    def release(self, member: MemberKey) -> None:
        """It answers again."""
        checked = self._services[member[0]]
        checked.pool.release(member[1], monotonic())
        checked.checker.check_now(member[1])

    def confirm(self, member: MemberKey, then: Callable[[str], None]) -> None:
        """As `HealthChecker` says."""
        self._services[member[0]].checker.confirm(member[1], then)

    def answered(self, member: MemberKey, message: dict[str, Any]) -> None:
        """A worker sent PONG."""
        if (checked := self._services.get(member[0])) is not None:
            checked.pong_received(member[1], message.get("seq"))

    async def run(self) -> None:
        """Check until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for checked in self._services.values():
                checked.start(group)
            while True:
                await asyncio.sleep(_TICK_S)
                for checked in self._services.values():
                    checked.pool.tick(monotonic())

    def stats(self) -> dict[str, Any]:
        """What a proxy would answer to STATS about these services."""
        series = metrics.snapshot(
            {name: checked.counters for name, checked in self._services.items()},
            fds={},
            log_dropped={},
        )
        pools = {name: checked.pool.snapshot() for name, checked in self._services.items()}
        return {"metrics": series, "pools": pools}


class _CheckedService:
    """The workers of one service, their pool and their checks."""

    def __init__(
        self, service: Service, send: Send, on_change: OnChange, on_answer: OnAnswer
    ) -> None:
        self.counters = ServiceCounters()
        self._name = service.name
        self._health = service.health
        self._send = send
        self._on_change = on_change
        self._unable_to_answer: set[int] = set()
        """Members whose program does not understand messages on its channel."""
        self._ping_numbers = count(1)
        self._pings: dict[tuple[int, int], asyncio.Future[ProbeResult]] = {}
        """Unanswered ones, by member and number."""
        self.pool = Pool(
            (),
            balance="round_robin",
            health=service.health,
            ejection=service.ejection,
            random=lambda: 0.0,
            on_change=self._member_changed,
            on_waiting=self._member_changed,
        )
        self.checker = HealthChecker(
            self.pool,
            self.counters,
            clock=monotonic,
            probe=self._probe,
            on_answer=lambda member, answered: on_answer((service.name, member.number), answered),
        )

        self._task: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        self._task = group.create_task(self.checker.run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def configure(self, service: Service) -> None:
        self._health = service.health
        self.pool.configure(
            "round_robin", service.health, service.ejection, per_worker=0, now=monotonic()
        )

    def set_health(self, member: int, health: Health | None) -> None:
        if self.pool.has(member):
            self.pool.set_health(member, health or self._health)
            self.checker.configure(self._probe)

    def add(self, member: int, slot: int, health: Health | None) -> None:
        target = Target(member=member, slot=slot, address="", health=health)
        self.checker.add(self.pool.add(target))

    def remove(self, member: int) -> None:
        self.pool.remove(member)
        self.checker.remove(member)
        self._unable_to_answer.discard(member)

    def join(self, member: int, can_answer: bool) -> None:
        (self._unable_to_answer.discard if can_answer else self._unable_to_answer.add)(member)
        self.pool.join(member)
        self.checker.check_now(member)

    def pong_received(self, member: int, number: object) -> None:
        pong = self._pings.get((member, number)) if isinstance(number, int) else None
        if pong is not None and not pong.done():
            pong.set_result(HEALTHY)

    def _member_changed(self, member: Member, reason: str) -> None:
        self._on_change((self._name, member.number), member.state.value, reason)

    async def _probe(self, member: Member) -> ProbeResult:
        if member.number in self._unable_to_answer:
            return HEALTHY
        if member.health.path is None:
            return await self._ping(member.number)
        our_end, worker_end = socket.socketpair()
        with closing(our_end), closing(worker_end):
            our_end.setblocking(False)
            key = (self._name, member.number)
            if not self._send(key, {"cmd": contract.PROBE}, worker_end):
                return ProbeResult("refused", "its channel is closed")
            worker_end.close()
            return await probes.get(our_end, member.health.path)

    async def _ping(self, member: int) -> ProbeResult:
        number = next(self._ping_numbers)
        pong: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        self._pings[member, number] = pong
        try:
            ping = {"cmd": contract.PING, "seq": number}
            if not self._send((self._name, member), ping, None):
                return ProbeResult("refused", "its channel is closed")
            return await pong
        finally:
            del self._pings[member, number]
