"""One front process: takes its orders, runs its services, answers for them.

Owns: the front's event loop, the tick of its coarse clock, its account of descriptors and
the channel to the supervisor. It reads one variable of the environment (which descriptor
the channel is) and nothing else: configuration comes over the channel, listening sockets
are inherited. Without its supervisor it has no reason to live and leaves.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

import uvloop
from pydantic import ValidationError

from penstock_proxy import orders
from penstock_proxy.admission import Admission
from penstock_proxy.checker import Checker
from penstock_proxy.config import FrontConfig, FrontService
from penstock_proxy.deadlines import TICK_S, Deadlines
from penstock_proxy.metrics import snapshot
from penstock_proxy.pool import Member
from penstock_proxy.priority import let_workers_finish
from penstock_proxy.reactor import Reactor
from penstock_proxy.service import Service
from penstock_worker import channel, farewell
from penstock_worker.access_log import AccessLog, open_log
from penstock_worker.channel import Channel, Message
from penstock_worker.contract import EXIT_FAILED

_EXIT_ABANDONED: Final = 1

_log = logging.getLogger("penstock.front")


class Front:
    """Runs until it is told to drain and has, or until the supervisor is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reactor = Reactor(loop)
        self._services: dict[str, Service] = {}
        self._checkers: dict[str, Checker] = {}
        self._logs: dict[str, AccessLog] = {}
        self._deadlines = Deadlines(monotonic())
        self._admission = Admission(_raise_descriptor_limit(), 0, 0)
        self._spare = farewell.Spare()
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
            self._tell({"cmd": orders.READY})
            async with asyncio.TaskGroup() as group:
                checks = [group.create_task(c.run()) for c in self._checkers.values()]
                await asyncio.wait({self._finished})
                for check in checks:
                    check.cancel()
        for log in self._logs.values():
            log.close()
        self._spare.close()
        return self._finished.result()

    def _build(self, config: FrontConfig) -> None:
        self._admission.listeners = sum(len(s.listeners) for s in config.services)
        for service in config.services:
            front = Service(
                self._loop,
                self._reactor,
                service,
                self._deadlines,
                self._admission,
                self._access_log(service),
                partial(self._rotated, service.name),
            )
            front.overflow.spare = self._spare
            self._services[service.name] = front
            self._checkers[service.name] = Checker(
                front.pool,
                service.health,
                front.counters,
                clock=monotonic,
                way=front.way,
            )
        chains = {name: front.arrivals for name, front in self._services.items()}
        for front in self._services.values():
            front.arrivals.route(chains)
        if all(service.scheme == "handoff" for service in config.services):
            let_workers_finish()
        known = self._admission.open
        self._admission.other = max(0, _open_descriptors() - known)
        self._admission.check()

    def _access_log(self, service: FrontService) -> AccessLog | None:
        log = open_log(
            service.name,
            service.access_log,
            service.access_log_format,
            service.limits.log_field,
        )
        if log is not None:
            self._logs[service.name] = log
        return log

    # -- orders

    def ordered(self, message: Any, handle: socket.socket | None) -> None:
        """Carry out one message of the supervisor."""
        if handle is not None:
            if message["cmd"] == orders.LINK:
                self._link(message, handle)
            elif message["cmd"] == orders.COVER:
                self._services[message["service"]].gates.cover(message["front"], handle)
            else:
                handle.close()
            return
        carry_out = _ORDERS.get(message["cmd"])
        if carry_out is None:
            _log.warning("an order that this front does not know: %.80r", message["cmd"])
        else:
            carry_out(self, message)

    def _configure(self, message: Message) -> None:
        # At once, not in `run`: the next order may be in the same read.
        try:
            self._build(FrontConfig.model_validate(message["config"]))
        except (ValidationError, OSError) as error:
            self._tell({"cmd": orders.FAILED, "reason": str(error)})
            self._finish(EXIT_FAILED)
        else:
            self._configured.set_result(None)

    def _accept(self, _: Message) -> None:
        for service in self._services.values():
            service.gates.start()

    def _tls(self, message: Message) -> None:
        if (handshakes := self._services[message["service"]].arrivals.handshakes) is not None:
            handshakes.begin(message)

    def _certificate(self, message: Message) -> None:
        handshakes = self._services[message["service"]].arrivals.handshakes
        if handshakes is None:
            return
        try:
            handshakes.add(message)
        except OSError as error:
            # Of OpenSSL or the system; the supervisor has tried the same with success.
            why = f"cannot use the certificates of {message['service']}: {error}"
            if handshakes.ready:
                _log.error("%s; those before stay", why)
            else:
                self._tell({"cmd": orders.FAILED, "reason": why})
                self._finish(EXIT_FAILED)

    def _uncover(self, message: Message) -> None:
        for service in self._services.values():
            service.gates.uncover(message["front"])

    def _link(self, message: Message, handle: socket.socket) -> None:
        delegate = self._services[message["service"]].delegate
        if delegate is None:
            handle.close()
        else:
            delegate.linked(message["slot"], message["link"], message["end"], handle)

    def _unlink(self, message: Message) -> None:
        delegate = self._services[message["service"]].delegate
        if delegate is not None:
            delegate.unlinked(message["link"])
        self._tell({"cmd": orders.UNLINKED, "link": message["link"]})

    def _join(self, message: Message) -> None:
        name, slot, address = message["service"], message["slot"], message.get("address")
        service = self._services[name]
        if service.delegate is not None:
            service.delegate.joined(slot, message["link"])
        elif address is not None:
            service.move(slot, address)
        service.pool.join(slot, address)
        self._checkers[name].wake(slot)

    def _hold(self, message: Message) -> None:
        self._services[message["service"]].pool.hold(message["slot"])
        self._tell({"cmd": orders.HELD, "seq": message["seq"]})

    def _leave(self, message: Message) -> None:
        self._services[message["service"]].pool.leave(message["slot"])

    def _reopen(self, _: Message) -> None:
        for log in self._logs.values():
            log.reopen()

    def drain(self) -> None:
        """Accept no more, finish what there is, leave."""
        if not self._draining:
            self._draining = True
            for service in self._services.values():
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
            for service in self._services.values()
        ):
            self._finish(0)

    # -- telling

    def _tell(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.send(message)

    def _rotated(self, service: str, member: Member, reason: str) -> None:
        self._tell(
            {
                "cmd": orders.ROTATION,
                "service": service,
                "slot": member.slot,
                "state": member.standing.value,
                "reason": reason,
            }
        )

    def _stats(self, message: Message) -> None:
        kinds = {**self._admission.by_kind(), "channel": 1}
        # Looking takes a descriptor, and there may be none: then our own account has to do.
        with suppress(OSError):
            kinds["other"] = max(0, _open_descriptors() - (sum(kinds.values()) - kinds["other"]))
        for service in self._services.values():
            service.counters.queue = len(service.waiting)
            if (handshakes := service.arrivals.handshakes) is not None:
                service.counters.unfinished = handshakes.pending
            service.counters.accepting = service.gates.is_accepting
            if service.delegate is not None:
                service.delegate.settle()
        metrics = snapshot(
            {name: service.counters for name, service in self._services.items()},
            fds=kinds,
            loop_lag_s=self._lag_s,
            tasks=len(asyncio.all_tasks(self._loop)),
            log_dropped={name: log.dropped for name, log in self._logs.items()},
        )
        pools = {name: service.pool.rows() for name, service in self._services.items()}
        self._tell({"cmd": orders.STATS, "seq": message["seq"], "metrics": metrics, "pools": pools})

    def _tick(self) -> None:
        now = monotonic()
        self._lag_s = max(0.0, now - self._tick_due)
        self._tick_due = now + TICK_S
        self._loop.call_later(TICK_S, self._tick)
        self._deadlines.tick(now)
        self._admission.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for service in self._services.values():
            service.tick(now)
        self._leave_when_empty()


_ORDERS: Final[dict[str, Callable[[Front, Message], None]]] = {
    orders.CONFIGURE: Front._configure,
    orders.ACCEPT: Front._accept,
    orders.UNCOVER: Front._uncover,
    orders.JOIN: Front._join,
    orders.HOLD: Front._hold,
    orders.UNLINK: Front._unlink,
    orders.LEAVE: Front._leave,
    orders.STATS: Front._stats,
    orders.TLS: Front._tls,
    orders.CERTIFICATE: Front._certificate,
    orders.PING: lambda front, _: front._tell({"cmd": orders.PONG}),
    orders.REOPEN: Front._reopen,
    orders.DRAIN: lambda front, _: front.drain(),
}


def _open_descriptors() -> int:
    # One of them is the directory itself.
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 — a count, not paths


def _raise_descriptor_limit() -> int:
    """Take all that we may have: the hard limit. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _serve(sock: Any) -> int:
    loop = asyncio.get_running_loop()
    front = Front(loop)
    loop.add_signal_handler(signal.SIGTERM, front.drain)
    link = Channel(loop, sock, front.ordered, front.abandoned)
    try:
        return await front.run(link)
    finally:
        link.close()


def main() -> int:
    """`python -m penstock_proxy.front`, started by the supervisor only."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    sock = channel.inherited(os.environ)  # noqa: TID251 — which descriptor, and nothing else
    if sock is None:
        sys.stderr.write("penstock: a front is started by `penstock run`, not by hand\n")
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(sock))


if __name__ == "__main__":
    sys.exit(main())
