"""One proxy process: its event loop, from the start until it has drained.

Owns: the event loop, the tick of its coarse clock, the budget of descriptors and the channel
to the supervisor. `commands` carries out the supervisor's messages. The process reads one
environment variable (the channel's descriptor) and nothing else: the configuration comes over the
channel, and listening sockets are inherited. A proxy that has lost its supervisor exits.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any, Final

import uvloop

from penstock_proxy import messages
from penstock_proxy.balancing.outlier_detection import Recent
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import ProxyConfig
from penstock_proxy.config_parts import ReceivedParts
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TICK_S, TimerWheel
from penstock_proxy.runtime import stats
from penstock_proxy.runtime.commands import Commands, CommandTarget
from penstock_proxy.runtime.cuts import Cuts
from penstock_proxy.runtime.service import Service
from penstock_proxy.runtime.services import (
    LAST_CLOSE_S,
    Reports,
    Services,
    Shared,
)
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.channel import channel
from penstock_worker.channel.channel import Channel, Message
from penstock_worker.contract import EXIT_FAILED
from penstock_worker.net import lingering_close
from penstock_worker.telemetry.loop_lag import RESOLUTION_S

_EXIT_SUPERVISOR_LOST: Final = 1
_COLLECTIONS: Final = (700, 5, 200)
"""After so many new objects the youngest are looked at, after so many of these collections the
younger ones, and after so many of those all. The last takes the longer the more clients there are
(9,000: tens of milliseconds on a busy machine), and nobody is served meanwhile: Python's own
numbers, (700, 10, 10), make it while they come. Nearly all that we make is freed without the
collector. What is not waits for it, until 700,000 objects are more than were freed."""
_LAST_WORD_S: Final = 0.5
"""For the supervisor to take what this process says last."""

_log = logging.getLogger("penstock.proxy")


class Proxy(CommandTarget, Reports):
    """The process. It runs until it has drained, or until the supervisor is lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reactor = Reactor(loop)
        self._timers = TimerWheel(monotonic())
        self._fd_budget = FdBudget(_raise_descriptor_limit(), 0, 0)
        self._reactor.pipes.descriptors = self._fd_budget
        self._spare = lingering_close.SpareDescriptor()
        self._cuts = Cuts(loop, self._report_cut)
        self.services = Services(
            Shared(
                loop, self._reactor, self._timers, self._fd_budget, self._spare, self._cuts, self
            )
        )
        self.parts = ReceivedParts()
        self.commands = Commands(self, self._reactor.slices)
        self._channel: Channel | None = None
        self._configured: asyncio.Future[None] = loop.create_future()
        self._finished: asyncio.Future[int] = loop.create_future()
        self._draining = False
        self._tick_due = 0.0
        self._is_ticking = False

    async def run(self, channel_: Channel) -> int:
        """Run until the end. Returns the exit status: 0 after a drain."""
        self._channel = channel_
        # All objects so far live as long as the process: no collection scans them again. The
        # services are not among them. What is frozen is never collected, and they may go.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTIONS)
        waits: set[asyncio.Future[Any]] = {self._configured, self._finished}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self._finished.done():
            self._tick_due = monotonic()
            self._tick()
            self.send({"cmd": messages.READY})
            await self.services.run_checks(self._finished)
            # What it has counted since it was last asked.
            for message in self._stats(None):
                self._send_part(message)
            self._channel.flush(_LAST_WORD_S)
        self.services.close_logs()
        self._spare.close()
        return self._finished.result()

    # -- what commands act on

    def configuring(self, config: ProxyConfig) -> Iterator[None]:
        """Make the services. OSError if a file cannot be opened or descriptors are too few."""
        yield from self.services.configuring(config)
        counted = self._fd_budget.open
        self._fd_budget.other += max(0, stats.open_descriptors() - counted)
        self._fd_budget.check()
        self._configured.set_result(None)

    def reconfiguring(self, config: ProxyConfig, finish_s: Mapping[str, float]) -> Iterator[None]:
        """Bring the services to this configuration. OSError, CannotChangeError: nothing was
        changed."""
        if self._draining:
            # Somebody has sent TERM. It takes nothing new, and finishes what it has as it began;
            # the next process is started with what is in force then.
            self.services.cut_within(finish_s)
        else:
            yield from self.services.reconfiguring(config, finish_s)

    def fail(self, reason: str) -> None:
        """The process cannot start: report why, and exit."""
        self.send({"cmd": messages.FAILED, "reason": reason})
        self._finish(EXIT_FAILED)

    def draining(self, finish_s: Mapping[str, float], within_s: float) -> Iterator[None]:
        """Accept no more connections, finish what is in flight, exit.

        `finish_s`: by service, the seconds after which the rest is cut. `within_s`: the seconds
        after which the process exits in any case.
        """
        self.services.cut_within(finish_s)
        self._loop.call_later(within_s, self._finish, 0)
        if not self._draining:
            self._draining = True
            yield from self.services.draining()
        self._leave_when_empty()

    def terminate(self) -> None:
        """Somebody has sent TERM to this process: drain, within the times of the configuration."""
        self.commands.put(self._terminating)

    def _terminating(self) -> Iterator[None]:
        times = {name: one.timeouts.stop for name, one in self.services.by_name.items()}
        return self.draining(times, max(times.values(), default=0.0) + LAST_CLOSE_S)

    def cut_worker(self, service: Service, member: int, finish_s: float) -> None:
        """Cut what this process of a worker still has after `finish_s` seconds."""
        self._cuts.cut_worker(service, member, finish_s)

    def supervisor_lost(self) -> None:
        """The channel to the supervisor has ended: exit."""
        self._finish(_EXIT_SUPERVISOR_LOST)

    def _finish(self, status: int) -> None:
        if not self._finished.done():
            self._finished.set_result(status)

    def _leave_when_empty(self) -> None:
        if self._draining and self.services.is_empty:
            self._finish(0)

    # -- messages to the supervisor

    def send(self, message: Message) -> None:
        """Send a message to the supervisor."""
        assert self._channel is not None
        self._channel.send(message)

    def _report_cut(self, count: int) -> None:
        self.send({"cmd": messages.CUT, "count": count})
        self._leave_when_empty()

    def rotation_changed(self, service: str, member: Member, reason: str, recent: Recent) -> None:
        self.send(
            {
                "cmd": messages.ROTATION,
                "service": service,
                "member": member.number,
                "state": member.state.value,
                "reason": reason,
                "recent": recent,
            }
        )

    def check_answered(self, service: str, member: Member, answered: bool) -> None:
        message = {"cmd": messages.CHECKED, "service": service, "member": member.number}
        self.send({**message, "answered": answered})

    def crowded(self, service: str, count: int) -> None:
        self.send({"cmd": messages.CROWDED, "service": service, "count": count})

    def answer_stats(self, seq: int) -> None:
        self._reactor.slices.run(map(self._send_part, self._stats(seq)))

    def _send_part(self, message: Message | None) -> None:
        if message is not None:
            self.send(message)

    def _stats(self, seq: int | None) -> Iterator[Message | None]:
        """The messages of the answer to STATS."""
        return stats.answer(
            seq,
            tuple(self.services.by_name.values()),
            self.services.departed(),
            self._fd_budget,
            self._loop,
            self._reactor.lag,
        )

    def _tick(self) -> None:
        now = monotonic()
        # What takes long is counted where it is done; here is seen what else has kept the loop.
        self._reactor.lag.observe(max(0.0, now - self._tick_due - RESOLUTION_S))
        self._tick_due = now + TICK_S
        self._loop.call_later(TICK_S, self._tick)
        expiring = self._timers.advance(now)
        if not self._is_ticking:
            self._is_ticking = True
            self._reactor.slices.run(self._do_what_is_due(expiring, now))

    def _do_what_is_due(self, expiring: Iterator[None], now: float) -> Iterator[None]:
        try:
            yield from expiring
            self._fd_budget.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._reactor.pipes.tick()
            yield from self.services.ticking(now)
            self._leave_when_empty()
        finally:
            self._is_ticking = False


def _raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _serve(sock: Any) -> int:
    loop = asyncio.get_running_loop()
    proxy = Proxy(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, proxy.terminate)
    supervisor = Channel(loop, sock, proxy.commands.take, proxy.supervisor_lost)
    try:
        return await proxy.run(supervisor)
    finally:
        supervisor.close()


def main() -> int:
    """Run one proxy process. Returns its exit status."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    sock = channel.inherited(os.environ)  # noqa: TID251 — which descriptor, and nothing else
    if sock is None:
        sys.stderr.write("penstock: a proxy is started by `penstock run`, not by hand\n")
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(sock))
