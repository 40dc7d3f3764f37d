"""The client's connection as an exchange needs it.

Owns no code: it is the base of `client_connection`, and of any other source of requests. An
exchange writes its response to `transport`, sets the deadline of what it waits for, and calls
`exchange_over` at its end. Must not know: how requests are read.

A plain base class, not a Protocol: where the data path is compiled, its fields and calls are
native ones.
"""

from penstock_proxy.errors import Fault
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.open_clients import ClientHandle
from penstock_proxy.http.upstream_connection import Binding
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.net.transport import Transport


class Downstream(ClientHandle):
    """The source of requests, one at a time, and the destination of their responses."""

    __slots__ = (
        "address",
        "at_eof",
        "binding",
        "blocked",
        "buffer",
        "proxy_header",
        "service",
        "tls",
        "transport",
    )

    # First: compiled, it then shares a word with what the compiler adds for the others.
    blocked: bool
    """Writes are paused: the client does not read fast enough."""
    at_eof: bool
    """It sends no more, and waits for the rest of its responses."""
    service: HttpContext
    transport: Transport
    binding: Binding | None
    """None: it has never had a connection to a worker for itself."""
    address: str
    """The client's address, perhaps as a trusted proxy reported it; empty for a unix socket."""
    proxy_header: bytes
    """The PROXY header that each connection to a worker begins with; empty: none."""
    tls: str
    """The access log's field on TLS."""
    buffer: bytes
    """What the client has sent beyond the current request."""

    def send_error(self, fault: Fault, line: RequestLine | None, *, keep_alive: bool) -> int:
        """Send an error response, with one line of text. Returns the size of its body."""
        raise NotImplementedError

    def exchange_over(self, *, keep_alive: bool, truncated: bool) -> None:
        """The exchange has ended; `truncated`: in the middle of the response."""
        raise NotImplementedError

    def skip(self, size: int) -> None:
        """So much of the last request's body has not come yet: the next request is behind it."""
        raise NotImplementedError
