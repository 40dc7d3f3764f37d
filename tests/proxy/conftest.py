"""A harness for the tests of exchanges: a whole service without sockets.

Clients and workers are in memory. `Wire` is a real `Transport`, `Network` replaces connects,
and `Turns` replaces the event loop, so that a test controls each iteration.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock_proxy.config import Limits, Retries, ServiceConfig, Target, Timeouts
from penstock_proxy.http import connection_pool as connection_pool_module
from penstock_proxy.http import ended_request as ended_request_module
from penstock_proxy.http import exchange as exchange_module
from penstock_proxy.http import retried_request as retried_request_module
from penstock_proxy.http import upstream_request as upstream_request_module
from penstock_proxy.http import worker_connection as worker_connection_module
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.http1 import response as response_module
from penstock_proxy.listener import filter_chain as filter_chain_module
from penstock_proxy.net.connector import Connecting
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.net.transport import FirstReceiver, Receiver, Transport
from penstock_proxy.runtime.service import Service
from penstock_proxy.service import context as context_module
from penstock_proxy.service import error_log as error_log_module
from penstock_proxy.service.fd_budget import FdBudget
from penstock_proxy.tcp import session as session_module
from penstock_worker.net.stream import Stream

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class Turns:
    """The part of an event loop that a service in memory needs."""

    def __init__(self) -> None:
        self._ready: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._ready.append(lambda: callback(*args))

    def run(self) -> None:
        """Run callbacks until none is left."""
        while self._ready:
            self._ready.popleft()()


_HIGH_WATER = 64 << 10


class Wire(Transport):
    """One end of a connection in memory; the test is the other end."""

    def __init__(self, loop: Turns, protocol: Receiver) -> None:
        self._loop = loop
        self._protocol = protocol
        self._arriving: deque[bytes] = deque()
        self._reading = True
        self._closing = False
        self._ended = False
        self._stalled = False
        self._unsent = bytearray()
        self.written = bytearray()
        self.ended = False
        """The proxy has shut it down for writing."""
        self.lost = False
        self.full = False
        """The next write pauses writing."""

    # -- what the proxy calls

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        if self.full and not self._stalled:
            self.stall()
        (self._unsent if self._stalled else self.written).extend(data)

    def get_write_buffer_size(self) -> int:
        return _HIGH_WATER + len(self._unsent) if self._stalled else 0

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        if self._stalled:
            # As in asyncio: it closes when all is sent.
            self._closing = True
        else:
            self._end(None)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._deliver)

    def is_reading(self) -> bool:
        return self._reading

    def is_quiet(self) -> bool:
        return not (self._closing or self._arriving)

    def set_protocol(self, protocol: Receiver) -> None:
        self._protocol = protocol

    def borrow(self) -> None:
        """There is no socket."""

    # -- what the other end does

    def send(self, data: bytes) -> None:
        """Send bytes to the proxy; those that are not read stay in the kernel."""
        self._arriving.append(data)
        self._deliver()
        self._loop.run()

    def arrive(self, data: bytes) -> None:
        """Bytes for the proxy are in the kernel, and it has not looked since."""
        self._arriving.append(data)

    def send_eof(self) -> None:
        """End the other side: a FIN. Nobody can know yet whether it still reads."""
        if not self._closing and not self._protocol.eof_received():
            self.close()
        self._loop.run()

    def reset(self) -> None:
        """Reset the connection."""
        self._end(ConnectionResetError())
        self._loop.run()

    def stall(self) -> None:
        """Stop reading: the proxy's write buffer is full."""
        self._stalled = True
        self._protocol.pause_writing()

    def unstall(self) -> None:
        """Read again."""
        self._stalled = self.full = False
        self.written += self._unsent
        self._unsent.clear()
        if self._closing:
            self.abort()
        else:
            self._protocol.resume_writing()
        self._loop.run()

    def read_one_byte(self) -> None:
        """Read one byte, and stop again."""
        self.written += self._unsent[:1]
        del self._unsent[:1]

    def received(self) -> bytes:
        """What the other end has received since the last call."""
        data = bytes(self.written)
        self.written.clear()
        return data

    def _deliver(self) -> None:
        while self._arriving and self._reading and not self._closing:
            self._protocol.data_received(self._arriving.popleft())

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._closing = self._ended = True
            self._loop.call_soon(self._lose, error)

    def reset_at_once(self) -> None:
        """Reset the connection, and report it before any other event."""
        self._closing = self._ended = True
        self._lose(ConnectionResetError())
        self._loop.run()

    def deliver_in_turn(self, data: bytes) -> None:
        """Send bytes, without running the loop after them."""
        self._protocol.data_received(data)

    def _lose(self, error: Exception | None) -> None:
        self.lost = True
        self._protocol.connection_lost(error)


Done = Callable[[Stream | None, int], None]


class PendingConnect(Connecting):
    """A connect that the test completes."""

    # Not `Connecting.__init__`: there is no socket here.
    def __init__(self, network: "Network", done: Done) -> None:
        self._network = network
        self._ended = done

    def cancel(self) -> None:
        self._network.pending_connects.remove(self)

    def refuse(self) -> None:
        self._network.pending_connects.remove(self)
        self._ended(None, errno.ECONNREFUSED)
        self._network.loop.run()

    def answer(self) -> None:
        self._network.pending_connects.remove(self)
        self._ended(Stream(-1, 0), 0)
        self._network.loop.run()


class Network:
    """Connects in memory: replaces `connect` and `adopt`."""

    def __init__(self, loop: Turns) -> None:
        self.loop = loop
        self.refusing: set[int] = set()
        """Ports that refuse a connect."""
        self.unresponsive: set[int] = set()
        """Ports that do not answer a connect."""
        self.full = False
        """New connections are blocked by their first write."""
        self.pending_connects: list[PendingConnect] = []
        self.dialed: list[int] = []
        self.wires: list[Wire] = []
        """Connections to workers, oldest first."""

    def connect(
        self, _loop: object, address: Any, done: Done, proxy_header: bytes = b""
    ) -> PendingConnect | None:
        port = address[1][1]
        self.dialed.append(port)
        if port in self.unresponsive:
            self.pending_connects.append(PendingConnect(self, done))
            return self.pending_connects[-1]
        if port in self.refusing:
            done(None, errno.ECONNREFUSED)
        else:
            done(Stream(-1, 0), 0)
        return None

    def adopt(
        self,
        _reactor: object,
        protocol: FirstReceiver,
        _stream: object,
        _high: int = 0,
        *,
        first: bool = False,
    ) -> None:
        assert first is isinstance(protocol, WorkerConnection)
        wire = Wire(self.loop, protocol)
        wire.full = self.full
        self.wires.append(wire)
        protocol.connection_made(wire)


_READS_THE_CLOCK = (
    context_module,
    session_module,
    exchange_module,
    error_log_module,
    worker_connection_module,
    upstream_request_module,
    retried_request_module,
    ended_request_module,
)


class Harness:
    """A service, its network and its clock. Workers listen on the ports from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.loop = Turns()
        self.network = Network(self.loop)
        monkeypatch.setattr(error_log_module, "urandom", bytes)
        for module in (connection_pool_module, session_module):
            monkeypatch.setattr(module, "connect", self.network.connect)
        for module in (filter_chain_module, connection_pool_module, session_module):
            monkeypatch.setattr(module, "adopt", self.network.adopt)
        # The clock is none of the day: no Date is added.
        monkeypatch.setattr(response_module, "date_line", lambda _second: b"")
        for module in _READS_THE_CLOCK:
            monkeypatch.setattr(module, "monotonic", lambda: self.now)

    def build(
        self,
        workers: int = 1,
        *,
        queue: float = 0.0,
        total: float = 0.0,
        retries: Retries = Retries(),  # noqa: B008 — it is frozen
        abort_on_close: bool = False,
        **limits: int,
    ) -> None:
        """Build the service again."""
        self.network.wires.clear()
        self.network.dialed.clear()
        self.fd_budget = FdBudget(1024, 0, 0)
        self.timers = TimerWheel(self.now)
        config = ServiceConfig(
            name="web",
            listeners=(),
            targets=tuple(
                Target(
                    member=slot, slot=slot, address=f"127.0.0.1:{slot + 1}", joined=True, up=True
                )
                for slot in range(workers)
            ),
            timeouts=Timeouts(queue=queue, total=total, connect=5.0),
            limits=Limits(**{"head": 1024, **limits}),
            retries=retries,
            abort_on_close=abort_on_close,
            access_log="off",
        )
        self.service = Service(
            cast("AbstractEventLoop", self.loop),
            Reactor(cast("AbstractEventLoop", self.loop)),
            config,
            self.timers,
            self.fd_budget,
            None,
            lambda *_: None,
        )

    def client(self, port: int = 0) -> Wire:
        """Connect. `port`: what a PROXY header has reported."""
        self.fd_budget.clients += 1
        self.service.counters.active += 1
        protocol = ClientConnection(self.service, ("192.0.2.1", 5000), port=port)
        if protocol.counted_address:
            self.service.client_limit.acquire(protocol.counted_address)
        self.service.clients.add(protocol)
        wire = Wire(self.loop, protocol)
        protocol.connection_made(wire)
        return wire

    @property
    def connections(self) -> list[ClientConnection]:
        """The client connections of the service."""
        return [cast("ClientConnection", client) for client in self.service.clients]

    def connect_tcp(self) -> None:
        """Accept a client in tcp mode. Its wire is the newest one once a worker is connected."""
        self.fd_budget.clients += 1
        self.service.counters.active += 1
        session = session_module.Session(self.service, Stream(-1, 0), ("192.0.2.1", 5000))
        self.service.client_limit.acquire(session.address)
        session.dispatch()
        self.loop.run()

    @property
    def worker(self) -> Wire:
        """The newest connection to a worker."""
        return self.network.wires[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.timers.tick(self.now)
        self.service.tick(self.now)
        self.loop.run()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    harness = Harness(monkeypatch)
    harness.build()
    yield harness
    # Whatever happened: once both sides are closed, nothing is left open or counted.
    for client in harness.connections:
        cast("Wire", client.transport).reset()
    harness.loop.run()
    for wire in harness.network.wires:
        wire.reset()
    assert not harness.network.pending_connects
    assert (harness.fd_budget.clients, harness.fd_budget.upstreams) == (0, 0)
    assert harness.service.counters.active == 0
    assert harness.service.counters.upstreams == 0
    assert [member.active for member in harness.service.pool.members] == [0] * len(
        harness.service.pool.members
    )
    assert not harness.service.queue
    assert len(harness.service.client_limit) == 0
