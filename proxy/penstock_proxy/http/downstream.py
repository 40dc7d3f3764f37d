"""The client's connection as an exchange needs it.

Owns no code: the base of `client_connection`, and of whatever else a request may come from. An
exchange writes its response to `transport`, sets the deadline of what it waits for, and says
when it is over. Must not know: how requests are read.

A plain base class, not a Protocol: where the data path is compiled, its fields and calls are
native ones.
"""

from penstock_proxy.errors import Fault
from penstock_proxy.http.context import HttpClient, HttpContext
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.net.transport import Transport


class Downstream(HttpClient):
    """Where one request at a time comes from, and its response goes to."""

    __slots__ = (
        "address",
        "blocked",
        "bucket",
        "buffer",
        "deadline",
        "proxy_header",
        "service",
        "tls",
        "transport",
    )

    service: HttpContext
    transport: Transport
    address: str
    """The client's, perhaps as a trusted proxy reported it; empty for a unix socket."""
    proxy_header: bytes
    """What each connection to a worker begins with; empty: nothing."""
    tls: str
    """What the access log says of TLS."""
    buffer: bytes
    """What the client has sent beyond the request that is served."""
    blocked: bool
    """The client does not take what it is sent."""
    deadline: float
    """Of what is waited for now; `bucket` is the timer wheel's."""
    bucket: float

    @property
    def counts_for(self) -> str:
        """The address that this connection counts for; empty: for none."""
        raise NotImplementedError

    def answer(self, fault: Fault, line: RequestLine | None, *, keep: bool) -> int:
        """Send an answer of our own, one line of text. Returns the bytes of its body."""
        raise NotImplementedError

    def exchange_over(self, *, keep: bool, cut: bool) -> None:
        """The exchange has ended; `cut`: in the middle of its response."""
        raise NotImplementedError

    def expired(self, now: float) -> None:
        """The deadline is over: called by the timer wheel."""
        raise NotImplementedError
