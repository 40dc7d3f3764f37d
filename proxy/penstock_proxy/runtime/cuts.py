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
from collections.abc import Callable
from typing import NamedTuple

from penstock_proxy.balancing.pool import Member
from penstock_proxy.handoff.pending import Pending
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.service.context import RelayOwner


class _AtWorker(NamedTuple):
    """What one process of a worker has."""

    member: Member
    exchanges: list[tuple[ClientConnection, Exchange]]
    """Some of them may be upgraded, or will be."""
    sessions: list[RelayOwner]


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
            at_worker = _held_by(service, found)
            if at_worker.exchanges or at_worker.sessions:
                self._loop.call_later(seconds, self._cut_worker, service, at_worker)

    def _cut_service(self, service: HttpContext) -> None:
        count = sum(client.cut() for client in tuple(service.clients))
        count += sum(relay.cut() for relay in tuple(service.relays.values()))
        waiting = [one for one in service.queue if isinstance(one, Pending)]
        count += sum(one.cut() for one in waiting)
        self._report(count)

    def _cut_worker(self, service: HttpContext, at_worker: _AtWorker) -> None:
        member, relays = at_worker.member, service.relays
        count = 0
        for client, exchange in at_worker.exchanges:
            if client.exchange is exchange and exchange.member is member:
                upgraded = relays.get(exchange)
                count += cut_exchange(client, exchange) if upgraded is None else upgraded.cut()
        for session in at_worker.sessions:
            relay = relays.get(session)
            if relay is not None and session.member is member:
                count += relay.cut()
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


def _held_by(service: HttpContext, member: Member) -> _AtWorker:
    exchanges = []
    for client in service.clients:
        if isinstance(client, ClientConnection):
            exchange = client.exchange
            if exchange is not None and exchange.member is member:
                exchanges.append((client, exchange))
    sessions = [
        owner
        for owner in service.relays
        if owner.member is member and not isinstance(owner, Exchange)
    ]
    return _AtWorker(member, exchanges, sessions)
