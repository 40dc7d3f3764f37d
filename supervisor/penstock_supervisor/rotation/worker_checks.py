"""Who is well, of the workers that no proxy stands before.

Under `shared` and `reuseport` nobody picks a worker, but whether one answers is still known,
told and acted upon. The judgement is the proxy's own (its pool, its checks); only the way of
the question is another: over the worker's channel it is given one end of a socket pair, as if
a client had connected, and is asked on the other. Where there is no path to ask for, it is
enough that it answers on the channel. A program that never spoke on its channel cannot be
asked at all, and is well as long as it runs.
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
from penstock_proxy.balancing.probes import OK, ProbeResult
from penstock_proxy.config import Target
from penstock_proxy.metrics import ServiceCounters
from penstock_supervisor.config.model import Service
from penstock_worker import contract

_TICK_S: Final = 0.25

Ask = Callable[[str, int, Any, socket.socket | None], bool]
"""service, slot, message, handle → False if the worker is away."""
OnChange = Callable[[str, int, str, str], None]
"""service, slot, state, reason."""


class WorkerChecks:
    """All services that have no proxy."""

    def __init__(self, services: Iterable[Service], ask: Ask, on_change: OnChange) -> None:
        self._ask = ask
        self._services = {
            service.name: _CheckedService(service, ask, on_change) for service in services
        }

    def join(self, service: str, slot: int, *, asks: bool) -> None:
        """The slot's process is ready. `asks`: it can be asked how it is."""
        self._services[service].join(slot, asks)

    def leave(self, service: str, slot: int) -> None:
        """The slot's process is gone, or told to go."""
        self._services[service].pool.leave(slot)

    drain = leave
    """It finishes what it has and takes no more. Here that is the same: from now on it is its
    successor that would be asked."""

    def answered(self, service: str, slot: int, message: dict[str, Any]) -> None:
        """A PONG came."""
        if (checked := self._services.get(service)) is not None:
            checked.answered(slot, message.get("seq"))

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
    """One service."""

    def __init__(self, service: Service, ask: Ask, on_change: OnChange) -> None:
        self.counters = ServiceCounters()
        self._name = service.name
        self._health = service.health
        self._ask = ask
        self._on_change = on_change
        self._silent: set[int] = set()
        """Slots whose program cannot be asked."""
        self._numbers = count(1)
        self._asked: dict[tuple[int, int], asyncio.Future[ProbeResult]] = {}
        self.pool = Pool(
            [Target(slot=slot, address="") for slot in range(service.workers)],
            balance="round_robin",
            health=service.health,
            ejection=service.ejection,
            random=lambda: 0.0,
            on_change=self._changed,
        )
        self.checker = HealthChecker(
            self.pool, service.health, self.counters, clock=monotonic, probe=self._check
        )

    def join(self, slot: int, asks: bool) -> None:
        (self._silent.discard if asks else self._silent.add)(slot)
        self.pool.join(slot)
        self.checker.check_now(slot)

    def answered(self, slot: int, number: object) -> None:
        waiting = self._asked.get((slot, number)) if isinstance(number, int) else None
        if waiting is not None and not waiting.done():
            waiting.set_result(OK)

    def _changed(self, member: Member, reason: str) -> None:
        self._on_change(self._name, member.slot, member.state.value, reason)

    async def _check(self, member: Member) -> ProbeResult:
        if member.slot in self._silent:
            return OK
        if self._health.path is None:
            return await self._ping(member.slot)
        mine, theirs = socket.socketpair()
        with closing(mine), closing(theirs):
            mine.setblocking(False)
            if not self._ask(self._name, member.slot, {"cmd": contract.PROBE}, theirs):
                return ProbeResult("refused", "its channel is closed")
            theirs.close()
            return await probes.get(mine, self._health.path)

    async def _ping(self, slot: int) -> ProbeResult:
        number = next(self._numbers)
        waiting: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        self._asked[slot, number] = waiting
        try:
            ping = {"cmd": contract.PING, "seq": number}
            if not self._ask(self._name, slot, ping, None):
                return ProbeResult("refused", "its channel is closed")
            return await waiting
        finally:
            del self._asked[slot, number]
