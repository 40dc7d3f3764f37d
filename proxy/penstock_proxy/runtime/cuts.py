"""Cuts what is still open when the time to finish is over: at a stop, and when a worker leaves.

Owns when that is, and what belongs to a worker's process that leaves. How a connection is cut so
that its client sees it is the connection's: `client_connection`, `duplex`, `session`, `pending`.
Must not know who set the time; the supervisor did.

A worker that leaves is not picked any more, so what it still has is known when that begins. It
may have a new process before the time is over, and what that one has is not cut. What
has no answer yet may go to another worker, by the rules of retries.

Without this, the end of a process would close its connections: an end of file, which for some
clients is the end of a complete message.
"""

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterator
from typing import NamedTuple

from penstock_proxy.balancing.pool import Member
from penstock_proxy.handoff.pending import Pending
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.http.open_clients import ClientHandle
from penstock_proxy.service.context import RelayOwner


class _AtWorker(NamedTuple):
    """What one process of a worker has."""

    member: Member
    exchanges: list[tuple[ClientConnection, Exchange]]
    """Some of them may be upgraded, or will be."""
    sessions: list[RelayOwner]
    looking: Iterator[None]
    """All clients are looked at for it; at its end all is known that it has."""


class Cuts:
    """`on_cut(count)` is called after each cut that ended something."""

    def __init__(self, loop: AbstractEventLoop, on_cut: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_cut = on_cut

    def cut_service(self, service: HttpContext, seconds: float) -> TimerHandle:
        """Cut all that a service has open after so many seconds."""
        return self._loop.call_later(seconds, self._cut_service, service)

    def cut_worker(self, service: HttpContext, number: int, seconds: float) -> None:
        """Cut all that this member's process has now, and still has after so many seconds."""
        found = service.pool.member(number)
        # Without anything in flight, not all clients are looked through for it.
        if found.active:
            # It is not picked any more, so what it has while we look is what it has now.
            exchanges: list[tuple[ClientConnection, Exchange]] = []
            sessions: list[RelayOwner] = []
            looking = _look(service, found, exchanges, sessions)
            at_worker = _AtWorker(found, exchanges, sessions, looking)
            self._loop.call_later(seconds, self._cut_worker, service, at_worker)
            service.reactor.slices.run(looking)

    def _cut_service(self, service: HttpContext) -> None:
        service.reactor.slices.run(self._cutting(service))

    def _cutting(self, service: HttpContext) -> Iterator[None]:
        count = 0

        def cut(client: ClientHandle) -> None:
            nonlocal count
            count += client.cut()

        yield from service.clients.each(cut)
        for owner, relay in tuple(service.relays.items()):
            if service.relays.get(owner) is relay:
                count += relay.cut()
            yield
        for one in tuple(service.queue):
            if isinstance(one, Pending) and one in service.queue:
                count += one.cut()
            yield
        self._report(count)

    def _cut_worker(self, service: HttpContext, at_worker: _AtWorker) -> None:
        service.reactor.slices.run(self._cutting_worker(service, at_worker))

    def _cutting_worker(self, service: HttpContext, at_worker: _AtWorker) -> Iterator[None]:
        yield from at_worker.looking
        member, relays = at_worker.member, service.relays
        count = 0
        for client, exchange in at_worker.exchanges:
            if client.exchange is exchange and exchange.member is member:
                upgraded = relays.get(exchange)
                count += cut_exchange(client, exchange) if upgraded is None else upgraded.cut()
            yield
        for session in at_worker.sessions:
            relay = relays.get(session)
            if relay is not None and session.member is member:
                count += relay.cut()
            yield
        self._report(count)

    def _report(self, count: int) -> None:
        if count:
            self._on_cut(count)


def cut_exchange(client: ClientConnection, exchange: Exchange) -> bool:
    """The time of its worker is over. True: it was cut; False: another worker is asked for it."""
    if exchange.response_started or exchange.status == 101:
        return client.cut()
    exchange.worker_out_of_time()
    return client.exchange is not exchange


def _look(
    service: HttpContext,
    member: Member,
    exchanges: list[tuple[ClientConnection, Exchange]],
    sessions: list[RelayOwner],
) -> Iterator[None]:
    """Add what the member has to both lists."""
    for client in tuple(service.clients):
        if isinstance(client, ClientConnection):
            exchange = client.exchange
            if exchange is not None and exchange.member is member:
                exchanges.append((client, exchange))
        yield
    for owner in tuple(service.relays):
        if owner.member is member and not isinstance(owner, Exchange):
            sessions.append(owner)
        yield
