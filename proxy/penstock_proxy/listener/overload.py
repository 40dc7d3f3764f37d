"""Overload control: what happens when more clients connect than can be served.

Owns, for one service: when accepting is paused and why, when room is made and for how many, which
waiting clients are refused, and the limit of connections per client. Must not know: what is done
with an accepted connection (`filter_chain`), and which of them is ended first (`eviction`).

A client that finds no room waits in the kernel's queue, and most often is accepted a moment
later. That costs nothing. If it still waits at the next tick, connections without a request are
ended, as many as clients wait, and again at each tick as long as somebody waits. The descriptors
are those of the process: a service that needs some makes room among the connections of all.

Under `handoff` the workers have the connections, and only they know which have no request. So they
are asked (`on_crowded`), for those that wait to be accepted as well as for those that wait here
because every worker has as many as it may.

But no client should wait for ever, so one that has waited for `timeouts.queue` is accepted on a
descriptor of the reserve, answered 503 (in mode tcp without an answer) and closed.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import CLIENT_LIMIT, MAX_CONNECTIONS, NO_DESCRIPTORS, Fault
from penstock_proxy.http.context import HttpContext
from penstock_proxy.listener import eviction
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.listener.eviction import Candidate, Endable, Holder
from penstock_proxy.listener.listeners import AdmissionControl, Listeners
from penstock_proxy.listener.overload_log import OverloadLog
from penstock_proxy.listener.rejection import Rejections
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.service.client_limit import network_of
from penstock_worker.net.stream import Stream

if TYPE_CHECKING:
    from penstock_worker.net import lingering_close

_MAX_REFUSED_A_TICK: Final = 256
_IDLE_S: Final = 1.0
"""A connection idle for less may be about to send its next request. It is not ended before
somebody has waited from one tick to the next."""
_FOR_ROUTED: Final = 16
"""Places that are made at once for connections that were routed here by name."""
_RESUMED_AT_ONCE: Final = 4
"""Services that are full and looked at when a connection is closed: each tick looks at all."""


class Sharing:
    """The services of a process, which share its descriptors. They come and go."""

    __slots__ = ("_next", "all", "full")

    def __init__(self) -> None:
        self.all: list[Overload] = []
        self.full: dict[Overload, None] = {}
        """Those that have left a connection waiting; as an ordered set."""
        self._next = 0

    def add(self, one: "Overload") -> None:
        """It has come."""
        self.all.append(one)

    def remove(self, one: "Overload") -> None:
        """It has gone."""
        self.all.remove(one)
        self.full.pop(one, None)

    def in_turn(self) -> "Iterator[Overload]":
        """All of them, from the one on that was not reached the last time."""
        services = self.all
        for _ in range(len(services)):
            self._next = (self._next + 1) % len(services)
            yield services[self._next]


class Overload(AdmissionControl):
    """The admission control of one service."""

    listeners: Listeners
    """Set after construction, because listeners need this object."""

    def __init__(self, service: HttpContext) -> None:
        self._service = service
        config = service.config
        self.unserved: list[Iterable[Endable]] = []
        """Connections that are not served yet and wait in a filter, each kind oldest first: those
        of every filter that the service has or had."""
        self.sharing = Sharing()
        """One for all services of the process; see `share`."""
        self.sharing.add(self)
        self._made_room_at = {MAX_CONNECTIONS.kind: NEVER, NO_DESCRIPTORS.kind: NEVER}
        self.on_crowded: Callable[[int], None] = lambda _: None
        """Is called with how many wait for connections that workers have to end; at most once
        a tick."""
        self._has_seen_all = False
        """There are no others than those that were looked at last."""
        self._asked = False
        """Workers were asked since the last tick. They have until the next one to end some."""
        self._log = OverloadLog(config.name)
        self.spare: lingering_close.SpareDescriptor | None = None
        """The spare descriptor of the process, opened before the first accept."""
        self.rejections = Rejections(service, speaks_http=False)
        self.configure()

    def configure(self) -> None:
        """Act on the service's configuration as it is now."""
        config = self._service.config
        self._per_client = config.limits.connections_per_client
        # With TLS an answer would need a handshake first, which costs too much here.
        self.rejections.speaks_http = (
            config.mode == "http" and config.scheme == "ports" and not config.tls
        )
        # Now, and not at the next tick: a client that connects before it has the new limit, too.
        self._update_client_limit()

    def share(self, sharing: Sharing) -> None:
        """It is one of these from now on; before anything is accepted."""
        self.sharing = sharing
        sharing.add(self)

    # -- admission

    @property
    def is_full(self) -> bool:
        """A connection was left waiting in a listener's queue."""
        return self in self.sharing.full

    def room(self) -> int:
        """How many more connections may be accepted; below 1: none."""
        room, limit = self._service.fd_budget.room(), self._service.config.max_connections
        return min(room, limit - self._connection_count()) if limit else room

    def _connection_count(self) -> int:
        counters = self._service.counters
        return counters.active + counters.in_flight + counters.opened

    def no_room(self) -> None:
        """A connection waits, and there is no room for it."""
        fault = self._limit_reached()
        if fault is None:
            return
        if not self.is_full:
            self.sharing.full[self] = None
            self._service.counters.pauses[fault.kind] += 1
        self._log.full(fault, self._service.timers.now)
        ended = self._make_room(fault, _IDLE_S)
        if not self._asked:
            self._asked = self._ask_workers(fault, ended)

    def _limit_reached(self) -> Fault | None:
        if self._service.fd_budget.room() < 1:
            return NO_DESCRIPTORS
        limit = self._service.config.max_connections
        return MAX_CONNECTIONS if 0 < limit <= self._connection_count() else None

    def resume(self) -> None:
        """A connection was closed: accept again, also where somebody waits for its descriptors."""
        full = self.sharing.full
        if full:
            first = (self,) if self in full else ()
            for one in (*first, *islice(full, _RESUMED_AT_ONCE)):
                if one in full and one.room() > 0:
                    del full[one]
                    one.listeners.resume()

    def resources_exhausted(self) -> None:
        """An accept failed for want of a descriptor or of memory, although we counted room."""
        self._service.counters.pauses["system"] += 1
        self._make_room(NO_DESCRIPTORS, _IDLE_S)

    def ticking(self, now: float) -> Iterator[None]:
        """Four times a second: make room for those that wait, refuse those that have waited too
        long, and resume if there is room; a part in each step."""
        fault = self._limit_reached()
        listeners = self.listeners
        self._update_client_limit()
        ended = 0
        if fault is not None or listeners.is_exhausted:
            # They have waited since the last tick.
            ended = yield from self._making_room(fault or NO_DESCRIPTORS)
        if not self._asked:
            self._ask_workers(fault, ended)
        self._asked = False
        refused = 0
        for _ in listeners.refusing_overdue(now, fault or NO_DESCRIPTORS, _MAX_REFUSED_A_TICK):
            refused += 1
            yield
        self._log.refused(refused)
        if fault is None:
            self.sharing.full.pop(self, None)
            listeners.resume()
        self._log.tick(now)

    # -- connections per client

    def _update_client_limit(self) -> None:
        per_client, service = self._per_client, self._service
        if isinstance(per_client, int):
            service.client_limit.max_per_client = per_client
            return
        limit = service.fd_budget.capacity
        if service.config.max_connections:
            limit = min(limit, service.config.max_connections)
        service.client_limit.max_per_client = max(1, int(limit * per_client))

    def admit(self, stream: Stream, address: str) -> bool:
        """May this client have one more connection? If not, it is rejected here.

        An empty address is not counted: a trusted proxy connects for many clients.
        """
        if not address or self._service.client_limit.acquire(address):
            return True
        self.rejections.reject(stream, CLIENT_LIMIT)
        self._service.client_closed("")
        self._service.error_log.connection_rejected(address, CLIENT_LIMIT, CLIENT_LIMIT.text)
        return False

    # -- refusing

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        """Accept one from the queue and refuse it. False: there is none, or that failed."""
        stream = None if acceptor.is_exhausted else acceptor.accept_one()
        if stream is not None:
            self.rejections.reject(stream, fault)
        elif acceptor.is_exhausted and self.spare is not None:
            if not self.spare.refuse(acceptor.listener, self.rejections.answer(fault)):
                return False
            acceptor.accepted_elsewhere()
        else:
            return False
        self._service.counters.rejected[fault.kind] += 1
        return True

    # -- making room

    def has_room_for_routed(self) -> bool:
        """May a connection come in that another service has accepted? If it is full here, somebody
        who has no request makes room."""
        if self.room() > 0:
            return True
        return self._make_room(self._limit_reached() or NO_DESCRIPTORS, 0.0, _FOR_ROUTED) > 0

    def _make_room(self, fault: Fault, min_idle_s: float, wanted: int = 0) -> int:
        """End connections for the clients that wait, or for `wanted`; at most once a tick.

        Returns how many. They are closed when all that is ready now has been handled, or a little
        later if they are many.
        """
        wanted = self._missing(fault, wanted)
        return self._look(fault, min_idle_s, wanted) if wanted > 0 else 0

    def _making_room(self, fault: Fault) -> Generator[None, None, int]:
        """Likewise, for those that have waited since the last tick: look at some in each step,
        until as many were found as are wanted."""
        wanted, ended = self._missing(fault), 0
        for _ in range(eviction.MAX_ROUNDS):
            if ended >= wanted:
                break
            ended += self._look(fault, 0.0, wanted - ended)
            if self._has_seen_all:
                break
            yield
        return ended

    def _missing(self, fault: Fault, wanted: int = 0) -> int:
        """How many connections of clients have to end now; 0 if this was asked in this tick."""
        now = self._service.timers.now
        if self._made_room_at[fault.kind] == now:
            return 0
        wanted = min(wanted or self._wanted(fault), eviction.MAX_ENDED)
        if wanted < 1:
            return 0
        for one in self.sharing.all if fault is NO_DESCRIPTORS else (self,):
            one._made_room_at[fault.kind] = now
        if fault is NO_DESCRIPTORS:
            wanted -= self._end_spare_upstreams(2 * wanted) // 2
        return wanted

    def _look(self, fault: Fault, min_idle_s: float, wanted: int) -> int:
        """End up to `wanted` of those that are looked at in this turn; returns how many."""
        now = self._service.timers.now
        found: list[Candidate] = []
        looks = eviction.MAX_LOOKS
        for one in self.sharing.in_turn() if fault is NO_DESCRIPTORS else (self,):
            looks -= one._add_candidates(found, looks, now, min_idle_s)
            if looks < 1:
                break
        self._has_seen_all = looks > 0
        share = self._equal_share(self.sharing.all if fault is NO_DESCRIPTORS else [self])
        chosen = eviction.choose(found, wanted, _count, share)
        self._service.reactor.slices.run(self._ending(chosen, fault))
        return len(chosen)

    def _ask_workers(self, fault: Fault | None, ended: int) -> bool:
        """Ask workers that have the clients to end some, less those that were ended here.

        The descriptors of this process are not theirs: for want of these nobody is asked.
        """
        service = self._service
        if service.config.scheme != "handoff":
            return False
        wanted = self.listeners.waiting - ended if fault is MAX_CONNECTIONS else 0
        if service.pool.eligible and not service.pool.available:
            wanted += len(service.queue)
        if wanted < 1:
            return False
        self.on_crowded(min(wanted, eviction.MAX_ENDED))
        return True

    def _wanted(self, fault: Fault) -> int:
        """How many places are missing for those that wait."""
        if fault is NO_DESCRIPTORS:
            waiting = sum(min(one.listeners.waiting, one._places()) for one in self.sharing.all)
        else:
            waiting = self.listeners.waiting
        # The system may have no descriptors although we have counted some.
        return waiting - min(0, self.room()) if waiting else 0

    def _places(self) -> int:
        """What `max_connections` leaves."""
        limit = self._service.config.max_connections
        return max(0, limit - self._connection_count()) if limit else eviction.MAX_ENDED

    def _end_spare_upstreams(self, wanted: int) -> int:
        """End idle connections to workers; returns how many.

        Each client counts for two descriptors, so that helps only if there are more of them than
        of clients.
        """
        budget = self._service.fd_budget
        wanted = min(wanted, budget.upstreams - budget.clients)
        ended = 0
        for one in self.sharing.all:
            if ended >= wanted:
                break
            if one._service.counters.upstreams:
                ended += one._service.connections.end_oldest(wanted - ended)
        return ended

    def _add_candidates(
        self, found: list[Candidate], looks: int, now: float, min_idle_s: float
    ) -> int:
        """Look at up to so many of the service's connections, and add those that may be ended.
        Returns how many were looked at."""
        # Those that are not served yet are always the same ones, the oldest: not all looks.
        batch: list[Endable] = list(islice(chain.from_iterable(self.unserved), looks // 2))
        batch += self._service.clients.next_batch(looks - len(batch))
        found += eviction.candidates(batch, now, min_idle_s, self._holder)
        return len(batch)

    def _holder(self, address: str) -> Holder:
        return self, network_of(address)

    def _equal_share(self, sharing: "list[Overload]") -> int:
        holders = sum(len(one._service.client_limit) for one in sharing)
        capacity = self._service.fd_budget.capacity
        if len(sharing) == 1 and (limit := self._service.config.max_connections):
            capacity = min(capacity, limit)
        return eviction.equal_share(capacity, holders)

    def _ending(self, chosen: list[Candidate], fault: Fault) -> Iterator[None]:
        for one in chosen:
            # Its request may have come meanwhile, or it is closed.
            if one.connection.idle_since == one.since and one.connection.end_idle(fault):
                _overload_of(one.holder)._count_evicted(
                    "idle" if one.is_kept_alive else "no_request"
                )
            yield

    def _count_evicted(self, state: str) -> None:
        self._service.counters.evicted[state] += 1
        self._log.evicted(state)


def _overload_of(holder: Holder) -> Overload:
    overload: Overload = holder[0]
    return overload


def _count(holder: Holder) -> int:
    """How many connections an address has."""
    return _overload_of(holder)._service.client_limit.count(holder[1])
