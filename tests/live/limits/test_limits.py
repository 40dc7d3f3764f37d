"""Exceeding a limit has the response, the log line and the metric that README.md promises.

One run with small limits, and a client or worker that exceeds each of them. The limits of the
PROXY protocol, of TLS, of retries and of descriptors are tested with those subjects.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.support.live.wire import Origin, Wire

if TYPE_CHECKING:
    from tests.live.conftest import Launch
    from tests.support.live.cluster import Cluster

SMALL = 2048
"""Of heads, either way."""
HEADERS, TARGET, BODY = 20, 512, 1000
SELDOM = {"interval": "1h"}
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SILENT = b"GET /silent HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LARGE = 64 << 20


def worker(wire: Wire) -> None:
    """Answers as the path asks."""
    while head := wire.head():
        path = head.split(b" ")[1]
        if path == b"/silent" or head.startswith(b"POST"):
            wire.rest()
        elif path == b"/head":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: %b\r\n\r\n" % (b"x" * SMALL))
        elif path == b"/large":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            for _ in range(LARGE >> 20):
                wire.send(bytes(1 << 20))
        else:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    made = Origin(worker)
    yield made.address
    made.close()


@pytest.fixture(scope="module")
def run(launch: "Launch", origin: str) -> "Cluster":
    one = {"upstreams": [origin], "health": SELDOM, "access_log": "./access.log"}
    queue = {"queue": "300ms"}
    return launch(
        web={
            **one,
            "limits": {
                "head": f"{SMALL}B", "headers": HEADERS, "target": f"{TARGET}B",
                "body": f"{BODY}B", "response_head": f"{SMALL}B",
            },
            "timeouts": {"head": "300ms", "body": "400ms", **queue},
        },
        busy={**one, "limits": {"per_worker": 1, "queue": 1}, "timeouts": queue},
        single={**one, "limits": {"connections_per_client": 1}},
        full={
            **one, "limits": {"connections_per_client": 0}, "max_connections": 1,
            "timeouts": queue,
        },
        raw={**one, "mode": "tcp", "timeouts": {"tunnel": "300ms"}},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def leave(run: "Cluster") -> Iterator[None]:
    yield
    run.hang_up()


# -- clients that exceed a limit


Goes = Callable[["Cluster"], bytes]
"""What the client got when it went beyond."""


def sends(*data: bytes, to: str = "web") -> Goes:
    def goes(run: "Cluster") -> bytes:
        wire = run.connect(to)
        wire.send(*data)
        return wire.rest()

    return goes


def drips(run: "Cluster") -> bytes:
    """A body that goes on and on, at ten bytes a second or so."""
    wire = run.connect()
    wire.send(POST, b"Content-Length: %d\r\n\r\n" % BODY)
    wire.sock.settimeout(0.1)
    while True:
        wire.send(b"x")
        try:
            return wire.some()
        except TimeoutError:
            pass


def does_not_read(run: "Cluster") -> bytes:
    wire = run.connect()
    wire.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    got = wire.until(b"\r\n\r\n")
    run.until(lambda: any(line["termination"] == "send_timeout" for line in run.log))
    return got


def waits(run: "Cluster") -> bytes:
    run.connect("busy").send(SILENT)
    run.until(lambda: run.workers("busy")[0]["active"])
    return sends(LAST, to="busy")(run)


def waits_as_a_second(run: "Cluster") -> bytes:
    run.connect("busy").send(SILENT)
    run.until(lambda: run.workers("busy")[0]["active"])
    for _ in range(2):
        run.connect("busy").send(GET)
    return sends(LAST, to="busy")(run)


def comes_twice(run: "Cluster") -> bytes:
    assert run.connect("single").ask(GET).status == 200
    return sends(LAST, to="single")(run)


def finds_it_full(run: "Cluster") -> bytes:
    run.connect("full").send(SILENT)
    run.until(lambda: run.workers("full")[0]["active"])
    return sends(LAST, to="full")(run)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    name: str
    goes: Goes
    sees: bytes
    """The beginning of what the client gets."""
    log: str
    """In the log, behind the service's name; empty: nothing."""
    kind: str
    """Of `penstock_connection_errors_total`, and what the access log calls it."""
    rejected: str = ""
    """Of `penstock_rejected_total`, instead."""
    service: str = "web"


HERE = "127.0.0.1"
ROWS = (
    Row("head", sends(GET[:-2], b"A: %b\r\n\r\n" % (b"x" * SMALL)), b"HTTP/1.1 431 ",
        f"refused {HERE} with 431: head beyond {SMALL} bytes", "head_too_large"),
    Row("headers", sends(GET[:-2], b"A: b\r\n" * HEADERS, b"\r\n"), b"HTTP/1.1 431 ",
        f"refused {HERE} with 431: more than {HEADERS} header fields", "head_too_large"),
    Row("target", sends(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * TARGET)),
        b"HTTP/1.1 414 ", f"refused {HERE} with 414: target beyond {TARGET} bytes",
        "target_too_long"),
    Row("empty lines", sends(b"\r\n" * SMALL), b"HTTP/1.1 400 ",
        f"refused {HERE} with 400: nothing but empty lines", "bad_request"),
    Row("time for a head", sends(GET[:10]), b"HTTP/1.1 408 ",
        f"refused {HERE} with 408", "head_timeout"),
    Row("body", sends(POST, b"Content-Length: %d\r\n\r\n" % (BODY + 1)), b"HTTP/1.1 413 ",
        f"POST / from {HERE}: 413 request body too large", "body_too_large"),
    Row("body in chunks", sends(POST, b"Transfer-Encoding: chunked\r\n\r\n",
                               b"%x\r\n%b\r\n" % (BODY + 1, b"x" * (BODY + 1))),
        b"HTTP/1.1 413 ", f"POST / from {HERE}: 413 request body too large", "body_too_large"),
    Row("time in a body", sends(POST, b"Content-Length: 9\r\n\r\nx"), b"HTTP/1.1 408 ",
        f"POST / from {HERE}: 408 request body took too long", "body_timeout"),
    Row("rate of a body", drips, b"HTTP/1.1 408 ",
        f"POST / from {HERE}: 408 request body took too long", "body_timeout"),
    Row("time to take an answer", does_not_read, b"HTTP/1.1 200 ", "", "send_timeout"),
    Row("response head", sends(b"GET /head HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        b"HTTP/1.1 502 ", f"response head beyond {SMALL} bytes", "bad_response"),
    Row("idle tunnel", sends(to="raw"), b"", "", "tunnel_timeout", service="raw"),
    Row("time in the queue", waits, b"HTTP/1.1 503 ",
        f"GET / from {HERE}: 503 no worker was free in time", "queue_timeout",
        "queue_timeout", "busy"),
    Row("queue", waits_as_a_second, b"HTTP/1.1 503 ",
        f"GET / from {HERE}: 503 too many requests are waiting", "queue_full",
        "queue_full", "busy"),
    Row("connections of one address", comes_twice, b"HTTP/1.1 429 ",
        f"closed a connection from {HERE}: too many connections from this address", "",
        "client_limit", "single"),
    Row("connections", finds_it_full, b"HTTP/1.1 503 ",
        "full: refused 1 that had waited too long to be accepted", "",
        "max_connections", "full"),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_exceeding_a_limit_shows_in_the_response_the_log_and_the_metrics(
    run: "Cluster", row: Row
) -> None:
    def counted() -> float:
        if row.rejected:
            return run.metric("penstock_rejected_total", service=row.service, reason=row.rejected)
        return run.metric("penstock_connection_errors_total", service=row.service, kind=row.kind)

    def ended() -> int:
        return sum(
            line["service"] == row.service and line["termination"] == row.kind for line in run.log
        )

    counted_before, ended_before, said_before = counted(), ended(), len(run.err)
    got = row.goes(run)
    assert got.startswith(row.sees) if row.sees else not got
    assert (b"\r\nRetry-After: " in got) == (b" 503 " in row.sees)
    run.until(lambda: counted() > counted_before, row.name)
    if row.kind:
        run.until(lambda: ended() > ended_before, row.name)
    if row.log:
        run.until(lambda: row.log in run.err[said_before:], row.name)
