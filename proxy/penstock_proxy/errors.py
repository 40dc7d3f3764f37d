"""Whose fault a failure is, which status it becomes, and whether another worker may try.

Every failure of an exchange or a relayed connection is one `Fault`, so the answer to the
client, the metric label, the log's reason and the decision to retry come from one line of
one table. No I/O, no clock.

On the data path a fault is a value and no exception, because nothing above a transport's
callback would catch one. `http1` raises `RejectedError`, which has a fault, because a parser
is deeper than one call.
"""

from enum import StrEnum
from http import HTTPStatus
from typing import Final, NamedTuple


class Side(StrEnum):
    """Whose fault it is."""

    CLIENT = "client"
    WORKER = "worker"
    PROXY = "proxy"


class Fault(NamedTuple):
    """One kind of failure."""

    kind: str
    """The value of the metric's label `kind` and of the access log's `termination`."""
    side: Side
    status: int
    """Of the response, if none has begun; 0: no response, the connection is closed."""
    text: str
    """The body of that response."""


BAD_REQUEST: Final = Fault("bad_request", Side.CLIENT, 400, "bad request")
HEAD_TOO_LARGE: Final = Fault("head_too_large", Side.CLIENT, 431, "request head too large")
TARGET_TOO_LONG: Final = Fault("target_too_long", Side.CLIENT, 414, "request target too long")
BODY_TOO_LARGE: Final = Fault("body_too_large", Side.CLIENT, 413, "request body too large")
HEAD_TIMEOUT: Final = Fault("head_timeout", Side.CLIENT, 408, "request head took too long")
BODY_TIMEOUT: Final = Fault("body_timeout", Side.CLIENT, 408, "request body took too long")
CLIENT_GONE: Final = Fault("client_gone", Side.CLIENT, 0, "")
PROXY_HEADER: Final = Fault("proxy_header", Side.CLIENT, 0, "")
PROXY_UNTRUSTED: Final = Fault("proxy_untrusted", Side.CLIENT, 0, "")
HELLO_TIMEOUT: Final = Fault("hello_timeout", Side.CLIENT, 0, "")
"""The ClientHello did not come, by which a TLS connection is routed."""
VERSION: Final = Fault("version", Side.CLIENT, 505, "HTTP version not supported")
EXPECTATION: Final = Fault("expectation", Side.CLIENT, 417, "expectation failed")
NOT_IMPLEMENTED: Final = Fault("not_implemented", Side.CLIENT, 501, "not implemented")
NO_WORKER: Final = Fault("no_worker", Side.PROXY, 503, "no worker available")
MAX_CONNECTIONS: Final = Fault("max_connections", Side.PROXY, 503, "too many connections")
CLIENT_LIMIT: Final = Fault(
    "client_limit", Side.CLIENT, 429, "too many connections from this address"
)
QUEUE_FULL: Final = Fault("queue_full", Side.PROXY, 503, "too many requests are waiting")
QUEUE_TIMEOUT: Final = Fault("queue_timeout", Side.PROXY, 503, "no worker was free in time")
STOP_TIMEOUT: Final = Fault("stop_timeout", Side.PROXY, 503, "shutting down")
"""It had not ended when the time was over that a stop or a roll-out gives."""
NO_DESCRIPTORS: Final = Fault(
    "no_descriptors", Side.PROXY, 503, "out of descriptors, memory or ports"
)
CONNECT_FAILED: Final = Fault("connect_failed", Side.WORKER, 502, "cannot connect to a worker")
CONNECT_TIMEOUT: Final = Fault(
    "connect_timeout", Side.WORKER, 504, "connecting to a worker took too long"
)
WORKER_RESET: Final = Fault("worker_reset", Side.WORKER, 502, "the worker broke off")
WORKER_CLOSED: Final = Fault("worker_closed", Side.WORKER, 502, "the worker closed the connection")
BAD_RESPONSE: Final = Fault("bad_response", Side.WORKER, 502, "the worker's answer is not HTTP")
RESPONSE_TIMEOUT: Final = Fault("response_timeout", Side.WORKER, 504, "the worker took too long")
ANSWERED: Final = {
    502: Fault("worker_502", Side.WORKER, 502, "the worker answered 502"),
    503: Fault("worker_503", Side.WORKER, 503, "the worker answered 503"),
    504: Fault("worker_504", Side.WORKER, 504, "the worker answered 504"),
}
"""Answers of a worker that were discarded, so that another worker could be asked."""
SEND_TIMEOUT: Final = Fault("send_timeout", Side.CLIENT, 0, "")
"""The client stopped reading its response."""
TOTAL_TIMEOUT: Final = Fault("total_timeout", Side.PROXY, 504, "the exchange took too long")
TUNNEL_TIMEOUT: Final = Fault("tunnel_timeout", Side.PROXY, 0, "")
HALF_CLOSED_TIMEOUT: Final = Fault("half_closed_timeout", Side.PROXY, 0, "")
"""One side of a relayed connection had ended, and the other was silent for too long."""

REJECTED: Final = frozenset({NO_WORKER, QUEUE_FULL, QUEUE_TIMEOUT})
"""No worker had begun to serve the request. Counted by reason as well."""

BROKEN_OFF: Final = frozenset({WORKER_RESET.kind, STOP_TIMEOUT.kind})
"""Why a relayed connection ended before its time, and not by its client."""

_PHRASES: Final = {413: "Content Too Large", 414: "URI Too Long"}
"""As in RFC 9110. Before Python 3.13 the standard library has older phrases."""

FAULTS: Final = (
    *(value for value in tuple(globals().values()) if isinstance(value, Fault)),
    *ANSWERED.values(),
)


def status_line(fault: Fault) -> str:
    """The status line of a response that the proxy makes itself."""
    phrase = _PHRASES.get(fault.status) or HTTPStatus(fault.status).phrase
    return f"HTTP/1.1 {fault.status} {phrase}\r\n"


class RejectedError(Exception):
    """The parser rejected a message. `fault` says what to answer, `reason` what was wrong."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
