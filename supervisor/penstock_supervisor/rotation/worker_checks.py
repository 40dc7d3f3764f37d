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
from itertools import count
from time import monotonic
from typing import Any, Final

from penstock_proxy import metrics
from penstock_proxy.balancing import probes
from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.balancing.probes import HEALTHY, ProbeResult
from penstock_proxy.config import Target
from penstock_proxy.metrics import ServiceCounters
from penstock_supervisor.config.model import Service
from penstock_worker import contract

_TICK_S: Final = 0.25

Send = Callable[[str, int, Any, socket.socket | None], bool]
"""service, slot, message, handle → False if the worker is away."""
OnChange = Callable[[str, int, str, str], None]
"""service, slot, member state, reason."""
OnAnswer = Callable[[str, int, bool], None]
"""service, slot, whether anything has answered a check."""


class WorkerChecks:
    """All services that have no proxy. Their workers are added and removed one by one."""

    def __init__(
        self,
        services: Iterable[Service],
        send: Send,
        on_change: OnChange,
        on_answer: OnAnswer = lambda *_: None,
    ) -> None:
        self._services = {
            service.name: _CheckedService(service, send, on_change, on_answer)
            for service in services
        }

    def add(self, service: str, slot: int) -> None:
        """Add a slot. It is checked from `join` on. ValueError: the slot is there already."""
        self._services[service].add(slot)

    def remove(self, service: str, slot: int) -> None:
        """Remove a slot: it is checked and shown no more. KeyError: there is no such slot."""
        self._services[service].remove(slot)

    def join(self, service: str, slot: int, *, can_answer: bool) -> None:
        """The slot's process is ready. `can_answer`: it understands messages on its channel."""
        self._services[service].join(slot, can_answer)

    def leave(self, service: str, slot: int) -> None:
        """The slot's process is gone, or told to go."""
        self._services[service].pool.leave(slot)

    def drain(self, service: str, slot: int) -> None:
        """The worker finishes what it has and accepts no more. After that it is as good as gone
        for the checks: the next process to check in this slot is its successor."""
        self._services[service].pool.drain(slot)
        self._services[service].pool.leave(slot)

    def hold(self, service: str, slot: int, reason: str) -> None:
        """The slot's process may hang: it is down until `release`."""
        self._services[service].pool.hold(slot, reason)

    def release(self, service: str, slot: int) -> None:
        """It answers again."""
        checked = self._services[service]
        checked.pool.release(slot, monotonic())
        checked.checker.check_now(slot)

    def answered(self, service: str, slot: int, message: dict[str, Any]) -> None:
        """A worker sent PONG."""
        if (checked := self._services.get(service)) is not None:
            checked.pong_received(slot, message.get("seq"))

    async def run(self) -> None:
        """Check until cancelled."""
        async with asyncio.TaskGroup() as group:
            for checked in self._services.values():
                group.create_task(checked.checker.run())
            while True:
                await asyncio.sleep(_TICK_S)
                for checked in self._services.values():
                    checked.pool.tick(monotonic())

    def stats(self) -> dict[str, Any]:
        """What a proxy would answer to STATS about these services."""
        series = metrics.snapshot(
            {name: checked.counters for name, checked in self._services.items()},
            fds={},
            loop_lag_s=0.0,
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
        """Slots whose program does not understand messages on its channel."""
        self._ping_numbers = count(1)
        self._pings: dict[tuple[int, int], asyncio.Future[ProbeResult]] = {}
        """Unanswered ones, by slot and number."""
        self.pool = Pool(
            (),
            balance="round_robin",
            health=service.health,
            ejection=service.ejection,
            random=lambda: 0.0,
            on_change=self._member_changed,
        )
        self.checker = HealthChecker(
            self.pool,
            service.health,
            self.counters,
            clock=monotonic,
            probe=self._probe,
            on_answer=lambda member, answered: on_answer(service.name, member.slot, answered),
        )

    def add(self, slot: int) -> None:
        self.checker.add(self.pool.add(Target(slot=slot, address="")))

    def remove(self, slot: int) -> None:
        self.pool.remove(slot)
        self.checker.remove(slot)
        self._unable_to_answer.discard(slot)

    def join(self, slot: int, can_answer: bool) -> None:
        (self._unable_to_answer.discard if can_answer else self._unable_to_answer.add)(slot)
        self.pool.join(slot)
        self.checker.check_now(slot)

    def pong_received(self, slot: int, number: object) -> None:
        pong = self._pings.get((slot, number)) if isinstance(number, int) else None
        if pong is not None and not pong.done():
            pong.set_result(HEALTHY)

    def _member_changed(self, member: Member, reason: str) -> None:
        self._on_change(self._name, member.slot, member.state.value, reason)

    async def _probe(self, member: Member) -> ProbeResult:
        if member.slot in self._unable_to_answer:
            return HEALTHY
        if self._health.path is None:
            return await self._ping(member.slot)
        our_end, worker_end = socket.socketpair()
        with closing(our_end), closing(worker_end):
            our_end.setblocking(False)
            if not self._send(self._name, member.slot, {"cmd": contract.PROBE}, worker_end):
                return ProbeResult("refused", "its channel is closed")
            worker_end.close()
            return await probes.get(our_end, self._health.path)

    async def _ping(self, slot: int) -> ProbeResult:
        number = next(self._ping_numbers)
        pong: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        self._pings[slot, number] = pong
        try:
            ping = {"cmd": contract.PING, "seq": number}
            if not self._send(self._name, slot, ping, None):
                return ProbeResult("refused", "its channel is closed")
            return await pong
        finally:
            del self._pings[slot, number]
