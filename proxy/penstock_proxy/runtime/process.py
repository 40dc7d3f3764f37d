"""One proxy process: its event loop, from the start until it has drained.

Owns: the event loop, the tick of its coarse clock, the account of descriptors and the channel
to the supervisor. What the supervisor says is carried out by `commands`. The process reads one
variable of the environment (which descriptor the channel is) and nothing else: configuration
comes over the channel, listening sockets are inherited. Without its supervisor it has no reason
to live and leaves.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from functools import partial
from time import monotonic
from typing import Any, Final

import uvloop

from penstock_proxy import messages
from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import ProxyConfig, ServiceConfig
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TICK_S, TimerWheel
from penstock_proxy.runtime import stats
from penstock_proxy.runtime.commands import Commanded, carry_out
from penstock_proxy.runtime.scheduling import let_workers_finish
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.channel import channel
from penstock_worker.channel.channel import Channel, Message
from penstock_worker.contract import EXIT_FAILED
from penstock_worker.net import lingering_close
from penstock_worker.telemetry.access_log import AccessLog, open_log

_EXIT_ABANDONED: Final = 1

_log = logging.getLogger("penstock.proxy")


class Proxy(Commanded):
    """Runs until it is told to drain and has, or until the supervisor is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reactor = Reactor(loop)
        self.services: dict[str, Service] = {}
        self.checkers: dict[str, HealthChecker] = {}
        self.logs: dict[str, AccessLog] = {}
        self._timers = TimerWheel(monotonic())
        self._fd_budget = FdBudget(_raise_descriptor_limit(), 0, 0)
        self._spare = lingering_close.SpareDescriptor()
        self._channel: Channel | None = None
        self._configured: asyncio.Future[None] = loop.create_future()
        self._finished: asyncio.Future[int] = loop.create_future()
        self._draining = False
        self._tick_due = 0.0
        self._lag_s = 0.0

    async def run(self, channel_: Channel) -> int:
        """Serve. Returns the exit status: 0 after a drain."""
        self._channel = channel_
        waits: set[asyncio.Future[Any]] = {self._configured, self._finished}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self._finished.done():
            # What was made so far lives as long as the process: never look through it again.
            gc.collect()
            gc.freeze()
            self._tick_due = monotonic()
            self._tick()
            self.tell({"cmd": messages.READY})
            async with asyncio.TaskGroup() as group:
                checks = [group.create_task(c.run()) for c in self.checkers.values()]
                await asyncio.wait({self._finished})
                for check in checks:
                    check.cancel()
        for log in self.logs.values():
            log.close()
        self._spare.close()
        return self._finished.result()

    def _build(self, config: ProxyConfig) -> None:
        self._fd_budget.listeners = sum(len(s.listeners) for s in config.services)
        for service in config.services:
            proxy = Service(
                self._loop,
                self._reactor,
                service,
                self._timers,
                self._fd_budget,
                self._access_log(service),
                partial(self._rotated, service.name),
            )
            proxy.overload.spare = self._spare
            self.services[service.name] = proxy
            self.checkers[service.name] = HealthChecker(
                proxy.pool,
                service.health,
                proxy.counters,
                clock=monotonic,
                probe=proxy.probe,
            )
        chains = {name: proxy.filter_chain for name, proxy in self.services.items()}
        for proxy in self.services.values():
            proxy.filter_chain.set_sni_routes(chains)
        if all(service.scheme == "handoff" for service in config.services):
            let_workers_finish()
        known = self._fd_budget.open
        self._fd_budget.other = max(0, stats.open_descriptors() - known)
        self._fd_budget.check()

    def _access_log(self, service: ServiceConfig) -> AccessLog | None:
        log = open_log(
            service.name,
            service.access_log,
            service.access_log_format,
            service.limits.log_field,
        )
        if log is not None:
            self.logs[service.name] = log
        return log

    # -- what commands act on

    def configure(self, config: ProxyConfig) -> None:
        """Make the services. OSError if a file cannot be opened or descriptors are too few."""
        # At once, not in `run`: the next message may be in the same read.
        self._build(config)
        self._configured.set_result(None)

    def fail(self, reason: str) -> None:
        """The process cannot do what it was started for: say so, and leave."""
        self.tell({"cmd": messages.FAILED, "reason": reason})
        self._finish(EXIT_FAILED)

    def drain(self) -> None:
        """Accept no more, finish what there is, leave."""
        if not self._draining:
            self._draining = True
            for service in self.services.values():
                service.drain()
            self._leave_when_empty()

    def abandoned(self) -> None:
        """The supervisor is gone."""
        self._finish(_EXIT_ABANDONED)

    def _finish(self, status: int) -> None:
        if not self._finished.done():
            self._finished.set_result(status)

    def _leave_when_empty(self) -> None:
        if self._draining and not any(
            service.counters.active + service.counters.in_flight
            for service in self.services.values()
        ):
            self._finish(0)

    # -- telling

    def tell(self, message: Message) -> None:
        """Say something to the supervisor."""
        assert self._channel is not None
        self._channel.send(message)

    def _rotated(self, service: str, member: Member, reason: str) -> None:
        self.tell(
            {
                "cmd": messages.ROTATION,
                "service": service,
                "slot": member.slot,
                "state": member.state.value,
                "reason": reason,
            }
        )

    def stats(self) -> Message:
        """What an answer to STATS says."""
        return stats.answer(self.services, self.logs, self._fd_budget, self._loop, self._lag_s)

    def _tick(self) -> None:
        now = monotonic()
        self._lag_s = max(0.0, now - self._tick_due)
        self._tick_due = now + TICK_S
        self._loop.call_later(TICK_S, self._tick)
        self._timers.tick(now)
        self._fd_budget.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for service in self.services.values():
            service.tick(now)
        self._leave_when_empty()


def _raise_descriptor_limit() -> int:
    """Take all that we may have: the hard limit. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _serve(sock: Any) -> int:
    loop = asyncio.get_running_loop()
    proxy = Proxy(loop)
    loop.add_signal_handler(signal.SIGTERM, proxy.drain)
    link = Channel(loop, sock, partial(carry_out, proxy), proxy.abandoned)
    try:
        return await proxy.run(link)
    finally:
        link.close()


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
