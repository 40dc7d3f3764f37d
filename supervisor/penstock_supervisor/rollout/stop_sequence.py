"""The order in which the processes of a run end, and what had to be cut.

Owns who is told when. The workers of an `app` are told first that the end comes. They go on
serving, but the program's own shutdown begins: it closes its WebSockets and ends its event
streams, and the proxies deliver that. Without it one open WebSocket would hold the proxies until
the time is over. When the proxies have finished, or must have, the workers are told to leave.
Workers that accept by themselves are told to leave at once. A `command` knows no first notice: it
is told to leave after the proxies, and has its whole time then.

A stop *at once* has the same order, but nobody waits for what is open: each cuts it, so that
clients see it, and is killed a moment later.

Must not know why the run stops, nor how a child is told (`children.stop_times`, `children.child`).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.children.stop_times import AT_ONCE_S, stop_message, worker_stop_s
from penstock_supervisor.config.model import Service
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies

_MAX_CUT: Final = 1 << 24
"""More than any process has open. A number without a bound could not even be logged."""

_log = logging.getLogger("penstock.supervisor")


class StopSequence:
    """Made once for a run; `run` is called once, and `at_once` at any time."""

    def __init__(
        self,
        services: Mapping[str, Service],
        slots: Slots,
        condition: Condition,
        clock: Callable[[], float],
    ) -> None:
        self.services = services
        """Those of the moment, by name."""
        self._slots = slots
        self._condition = condition
        self._clock = clock
        self._at_once = False
        self._at_most_s: float | None = None
        self._ends: dict[str, float] = {}
        """By service: when its workers are killed that were told before the proxies."""
        self._told: set[int] = set()
        """The pids of those workers."""
        self._is_begun = False
        self._cut = 0
        """Since it has begun: what workers cut that were replaced before is no part of the stop."""
        self._heard: set[tuple[str, int | None]] = set()
        """Worker processes that have reported a cut."""

    @property
    def longest_s(self) -> float:
        """How long a stop can take."""
        return max(
            service.timeouts.stop * (2 if _ends_after_proxies(service) else 1)
            for service in self.services.values()
        )

    def was_cut(self, child: Child, count: object) -> None:
        """A child reports that it has cut what had not ended in time."""
        if not isinstance(count, int) or not 0 < count <= _MAX_CUT:
            return
        if child.plan.role != "proxy":
            # A process of our runtime says it once. A program of its own may say anything.
            if (child.name, child.pid) in self._heard:
                return
            self._heard.add((child.name, child.pid))
        if self._is_begun:
            self._cut += count
        _log.warning("%s: the time to finish is over; cut: %d", child.name, count)

    def at_once(self) -> None:
        """Wait for nothing any more: cut what is open."""
        self._is_begun = self._at_once = True
        for proxy in self._slots.proxies:
            proxy.stop_at_once(AT_ONCE_S)
        for child in self._slots.workers():
            # Those behind a proxy are told when it has cut, but what has ended already may have
            # left something that goes on.
            is_leaving = child.state is State.STOPPING or child.left_behind
            if is_leaving or not self._is_behind_proxy(child):
                self._stop(child)
        self._condition.notify()

    async def run(self, proxies: Proxies, at_most_s: float | None) -> None:
        """Stop everything, and return when it has ended."""
        self._is_begun = True
        self._at_most_s = at_most_s
        now = self._clock()
        stop_s = {name: self._stop_s(service) for name, service in self.services.items()}
        self._ends = {name: now + seconds for name, seconds in stop_s.items()}
        # First of all, and once more below for workers that get ready only now.
        self._announce()
        proxies.stop(at_most_s)
        if self._at_once:
            self.at_once()
        for child in self._slots.workers():
            if not self._is_behind_proxy(child):
                self._stop(child)
        for name, seconds in sorted(stop_s.items(), key=lambda item: item[1]):
            await self._until_at_rest(proxies, now + worker_stop_s(seconds))
            for child in self._slots.workers():
                if child.plan.service == name:
                    self._stop(child)
        await self._condition.wait_until(
            lambda: all(child.at_rest for child in self._slots.children())
        )
        if self._cut:
            _log.warning("stopped; requests and connections that were cut: %d", self._cut)
        else:
            _log.info("stopped")

    async def _until_at_rest(self, proxies: Proxies, due: float) -> None:
        """Wait until the proxies have ended, or it is `due`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - self._clock())):
                while not proxies.at_rest:
                    self._announce()
                    await self._condition.wait_until(
                        lambda: proxies.at_rest or bool(self._untold())
                    )

    def _untold(self) -> list[Child]:
        """Workers that can be told before the proxies: they run our code, and serve."""
        return [
            child
            for child in self._slots.workers()
            if self._is_behind_proxy(child)
            and child.plan.runs_our_code
            and child.state is State.UP
            and child.pid not in self._told
        ]

    def _announce(self) -> None:
        """Tell workers that the end comes; also one that was started again meanwhile."""
        for child in self._untold():
            assert child.pid is not None
            self._told.add(child.pid)
            seconds = self._ends[child.plan.service] - self._clock()
            child.send(stop_message(child.plan, max(0.0, seconds), at_once=self._at_once))

    def _stop(self, child: Child) -> None:
        if self._at_once and child.plan.runs_our_code:
            child.stop_at_once(AT_ONCE_S)
        elif self._at_once:
            # It has no way to cut what is open, and was told to leave before, or nobody waits.
            child.stop_now()
        elif child.pid in self._told:
            child.stop(max(AT_ONCE_S, self._ends[child.plan.service] - self._clock()))
        else:
            child.stop(self._at_most_s)

    def _stop_s(self, service: Service) -> float:
        at_most_s = self._at_most_s
        stop = service.timeouts.stop
        return stop if at_most_s is None else min(stop, at_most_s)

    def _is_behind_proxy(self, child: Child) -> bool:
        return self.services[child.plan.service].has_proxy


def _ends_after_proxies(service: Service) -> bool:
    """Does it begin to leave only when the proxies have finished?"""
    return service.has_proxy and service.command is not None
