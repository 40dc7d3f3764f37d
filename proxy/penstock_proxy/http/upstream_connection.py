"""A connection to a worker and the request on it, as each of them sees the other.

Owns: what a request is told of its response (`ResponseReceiver`), what it may know of the
connection that carries it (`UpstreamConnection`), and the bond of a client with one of its own
(`Binding`). Must not know: how a response is read (`worker_connection`), which connection is used
(`connection_pool`), and what becomes of a response (`exchange`).
"""

from enum import Enum, auto
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import Fault
from penstock_proxy.http.retry import Failure
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.response import Response, ResponseHeads
from penstock_proxy.net import tcp_info
from penstock_proxy.net.connector import Connecting
from penstock_proxy.net.transport import FirstReceiver, Transport


class BodyFraming(Enum):
    """How the end of a response is known (RFC 9112 §6.3)."""

    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()


LENGTH: Final = BodyFraming.LENGTH
"""Python 3.11 takes longer to find a member of an enum than to compare it."""


class ResponseReceiver:
    """The sender of a request: it gets the response.

    A plain base class: where the data path is compiled, its calls are native ones.
    """

    line: RequestLine
    connecting: Connecting | None = None
    """The connect in progress, if there is one."""

    def connected(self, connection: "UpstreamConnection") -> None:
        """A new connection is established: send the request."""
        raise NotImplementedError

    def connect_failed(self, reason: str, fault: Fault) -> None:
        """Connecting to the worker failed."""
        raise NotImplementedError

    def bind(self, connection: "UpstreamConnection") -> None:
        """The connection is being authenticated: nobody else may use it from now on."""
        raise NotImplementedError

    def interim_response(self, response: Response) -> None:
        """A 1xx response other than 101 was received."""
        raise NotImplementedError

    def response_head(self, response: Response, framing: BodyFraming) -> bytes:
        """The head of the final response was received; returns the head for the client.

        Empty: the response is discarded, and the receiver has given up this connection.
        """
        raise NotImplementedError

    def whole_response(self, response: Response, body: bytes) -> bool:
        """A simple response (`Response.is_simple`) was received with all of its body at once.

        Returns False if something about it has to be decided: then it is to be read step by step.
        """
        raise NotImplementedError

    def discard_408(self, connection: "UpstreamConnection") -> bool:
        """The worker closes a kept connection with a 408: it has not seen the request, but waited
        for one for too long. True: the request is sent again, and has given up this connection."""
        raise NotImplementedError

    def write_to_client(self, data: bytes, body: int) -> None:
        """Write a whole response to the client; `body` is how many of the bytes are its body."""
        raise NotImplementedError

    def send_head(self, head: bytes) -> None:
        """Send the head to the client; the body follows in pieces."""
        raise NotImplementedError

    def response_body(self, piece: bytes) -> None:
        """A piece of the body was received; never empty."""
        raise NotImplementedError

    def response_complete(self, trailers: bytes) -> None:
        """The response is complete."""
        raise NotImplementedError

    def upgraded(self, connection: "UpstreamConnection", response: Response, rest: bytes) -> None:
        """The worker has switched to another protocol; `rest` are its first bytes."""
        raise NotImplementedError

    def resume_upload(self) -> None:
        """The worker reads again: read more of the request's body."""
        raise NotImplementedError

    def pause_upload(self) -> None:
        """The worker does not read fast enough: stop reading the request's body."""
        raise NotImplementedError

    def request_size(self) -> int:
        """Bytes of the request that were written to its connection; 0: that is not known."""
        raise NotImplementedError

    def bad_response(self, fault: Fault, reason: str) -> None:
        """The response is malformed: it cannot be forwarded."""
        raise NotImplementedError

    def worker_connection_lost(
        self, connection: "UpstreamConnection", fault: Fault, failure: Failure
    ) -> None:
        """The connection ended before the response did."""
        raise NotImplementedError


class Binding:
    """A client that has a connection to a worker for itself, as long as both are there."""

    __slots__ = ("connection",)

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None

    def end(self) -> None:
        """The client sends no more requests."""
        connection, self.connection = self.connection, None
        if connection is not None and connection.receiver is None:
            connection.transport.close()


class UpstreamConnection(FirstReceiver):
    """One connection to a worker. `receiver` is None while it is idle."""

    __slots__ = (
        "_responses",
        "acked_before",
        "binding",
        "blocked",
        "idle_since",
        "max_idle_s",
        "member",
        "receiver",
        "transport",
        "used",
    )

    transport: Transport

    def __init__(
        self, member: Member, receiver: ResponseReceiver, responses: ResponseHeads
    ) -> None:
        self.member = member
        self.receiver: ResponseReceiver | None = receiver
        self._responses = responses
        self.binding: Binding | None = None
        """The client that alone may use it; None: all may."""
        self.used = False
        """It has carried a request before: the worker may have closed it while it was idle."""
        self.max_idle_s = 0.0
        """How long it may be idle before it is reused; 0: it cannot be reused."""
        self.blocked = False
        """Writes are paused: the worker does not read fast enough."""
        self.idle_since = 0.0
        self.acked_before = tcp_info.UNKNOWN
        """Bytes that the worker's kernel had acknowledged before this request. It is set for
        requests that must not be sent twice."""

    def bind(self, binding: Binding, responses: ResponseHeads) -> None:
        """Belong to this client from now on, until this connection ends."""
        self.binding, binding.connection = binding, self
        self._responses = responses

    def start_request(self, receiver: ResponseReceiver) -> None:
        """Carry another request. The caller writes it."""
        raise NotImplementedError
