"""The steps that `micro` measures: each is a name, and a context manager that yields the step.

A new case is a function here and a row in CASES. A step is called again and again and must
always cost the same, so it has to restore whatever it changes before it returns.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from random import random
from typing import TYPE_CHECKING, Any, Final, cast

from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.config import Balance, Ejection, Health, Limits, ServiceConfig, Target
from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.connection_pool import ConnectionPool
from penstock_proxy.http.upstream_connection import ResponseReceiver
from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.http1 import parser
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.request import HeaderRewriter
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.net.transport import Transport
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.telemetry.access_log import Format, make_log

if TYPE_CHECKING:
    from penstock_worker.telemetry.log_writer import LogWriter

Step = Callable[[], object]

REQUEST: Final = (
    b"GET /api/items?page=2 HTTP/1.1\r\n"
    b"Host: example.org\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n"
    b"Connection: keep-alive\r\n"
    b"\r\n"
)
RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 13\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 GMT\r\n"
    b"Server: bench\r\n"
    b"\r\n"
    b"Hello, world!"
)
CHUNKS: Final = b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"


class DiscardingTransport(Transport):
    """Discards what is written. It has as much of a transport as the proxy uses."""

    last_write: object = b""

    def write(self, data: bytes) -> None:
        self.last_write = data

    def is_closing(self) -> bool:
        return False

    def is_quiet(self) -> bool:
        return True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    abort = close


class MemoryConnections(ConnectionPool):
    """Connects to workers at once, and without sockets."""

    last_connection: WorkerConnection

    def connect(self, member: Member, receiver: ResponseReceiver, proxy_header: bytes) -> None:
        connection = WorkerConnection(member, receiver, self._responses, _ignore, _ignore)
        connection.connection_made(DiscardingTransport())
        self.last_connection = connection


def _targets(count: int) -> tuple[Target, ...]:
    return tuple(
        Target(member=slot, slot=slot, address=f"127.0.0.1:{9000 + slot}", joined=True, up=True)
        for slot in range(count)
    )


def _ignore(*_anything: Any) -> None:
    """A callback that does nothing."""


@contextmanager
def request_line() -> Iterator[Step]:
    yield lambda: parser.parse_request_line(REQUEST)


@contextmanager
def request_fields() -> Iterator[Step]:
    block = REQUEST[parser.parse_request_line(REQUEST).end :]
    yield lambda: parser.parse_fields(block, BAD_REQUEST)


@contextmanager
def request_forwarded(*, cached: bool) -> Iterator[Step]:
    line = parser.parse_request_line(REQUEST)
    block = REQUEST[line.end :]
    rewriter = HeaderRewriter((), 100)
    # The head of an HTTP/1.0 request is never cached, and costs the same otherwise.
    line = line if cached else replace(line, minor=0, is_plain=False)
    yield lambda: rewriter.prepare(line, block, trusted=False)


@contextmanager
def chunked() -> Iterator[Step]:
    yield lambda: Chunked(BAD_REQUEST).feed(CHUNKS)


@contextmanager
def pick(balance: Balance, workers: int) -> Iterator[Step]:
    pool = Pool(
        _targets(workers),
        balance=balance,
        health=Health(),
        ejection=Ejection(),
        random=random,
        on_change=_ignore,
    )
    yield lambda: pool.pick("192.0.2.1")


class DiscardingWriter:
    """A log writer that discards lines."""

    def write(self, data: bytes) -> None: ...


@contextmanager
def log_line(form: Format) -> Iterator[Step]:
    log = make_log("web", cast("LogWriter", DiscardingWriter()), form)
    head = b"Referer: https://example.org/\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    yield lambda: log.add(
        1_800_000_000.5, "192.0.2.1", b"GET", b"/api/items?page=2", "HTTP/1.1", 200, 13, 0,
        "web/0", None, 0.000312, 0.000333, 0, "0123456789abcdef", "ok", head, "",
    )  # fmt: skip


@contextmanager
def exchange() -> Iterator[Step]:
    """A whole exchange: request from the client to a worker, response back, and counted."""
    loop = asyncio.new_event_loop()
    config = ServiceConfig(
        name="web",
        listeners=(),
        targets=_targets(2),
        access_log="off",
        # The client's connection is kept for ever.
        limits=Limits(requests=0),
    )
    service = Service(
        loop, Reactor(loop), config, TimerWheel(0.0), FdBudget(1024, 0, 0), None, _ignore
    )
    connections = service.connections = MemoryConnections(service, config.limits.response_head)
    client = ClientConnection(service, ("192.0.2.1", 5000))
    client.connection_made(DiscardingTransport())
    member = service.pool.members[0]
    workers = {}
    for _ in service.pool.members:
        # Once over a new connection to each, so that every later exchange finds an idle one.
        client.data_received(REQUEST)
        connection = connections.last_connection
        workers[connection.member] = connection
        connection.data_received(RESPONSE)

    def step() -> None:
        client.data_received(REQUEST)
        assert client.exchange is not None
        workers[client.exchange.member or member].data_received(RESPONSE)

    step()
    assert client.exchange is None
    yield step
    loop.close()


CASES: Final[dict[str, Callable[[], AbstractContextManager[Step]]]] = {
    "head: request line": request_line,
    "head: 7 fields": request_fields,
    "head: forwarded, never seen before": lambda: request_forwarded(cached=False),
    "head: forwarded, same fields as before": lambda: request_forwarded(cached=True),
    "body: chunked, 1 KiB": chunked,
    "pick: round_robin, 4 workers": lambda: pick("round_robin", 4),
    "pick: round_robin, 64 workers": lambda: pick("round_robin", 64),
    "pick: least_connections, 4 workers": lambda: pick("least_connections", 4),
    "pick: power_of_two, 4 workers": lambda: pick("power_of_two", 4),
    "pick: client_hash, 4 workers": lambda: pick("client_hash", 4),
    "pick: random, 4 workers": lambda: pick("random", 4),
    "log line: json": lambda: log_line("json"),
    "log line: combined": lambda: log_line("combined"),
    "exchange: over memory, kept alive": exchange,
}
