"""How an aiohttp response ends, and the connection that it ends.

Owns what aiohttp leaves open of that: a body whose end is the end of the connection, a body where
none may be, and a client that still sends when its connection is closed. Must not know why a
connection is closed.

A body that ends with its connection and is broken off would look complete (RFC 9112 §8). So its
connection is one that the kernel resets, until all of it is written: the handler may raise or be
cancelled, the client may end its side, the process may be killed.
"""

from typing import Any, Final

from aiohttp import HttpVersion11, web

from penstock_worker.net.abortive_close import end_on_close, reset_on_close
from penstock_worker.net.lingering_close import LingeringClients

_WITHOUT_BODY: Final = frozenset((204, 304))


class Handler(web.RequestHandler):
    """aiohttp's protocol, with a response that ends with its connection."""

    __slots__ = ("_fd", "_last")

    def end_with(self, response: web.StreamResponse | None) -> None:
        """The end of this response is the end of the connection: whoever closes that resets it,
        unless the response is complete and all of it is with the kernel. None: no response is."""
        if response is not None and self.transport is not None:
            # aiohttp may forget its transport before that is closed.
            self._fd: int = self.transport.get_extra_info("socket").fileno()
            self._last: web.StreamResponse | None = response
            reset_on_close(self._fd)
        elif getattr(self, "_last", None) is not None:
            self._last = None
            end_on_close(self._fd)

    def all_is_written(self) -> None:
        """To be called in `connection_lost`: the transport has not closed its descriptor yet."""
        last = getattr(self, "_last", None)
        if last is not None and last._eof_sent:
            self.end_with(None)


def lingering(clients: LingeringClients) -> type[Handler]:
    """aiohttp's protocol, whose clients may finish what they send. aiohttp lingers for a body that
    the program has not read, but for ten seconds only, and resets what it refuses."""

    class Lingering(Handler):
        __slots__ = ("_body",)

        def _handle_request(self, request: web.BaseRequest, *rest: Any) -> Any:
            self._body = request.content
            return super()._handle_request(request, *rest)

        def connection_lost(self, exc: BaseException | None) -> None:
            if exc is None:
                self.all_is_written()
                body = getattr(self, "_body", None)
                # The rest of it may be on its way, though nothing has come in this moment.
                clients.take_over(self.transport, expected=body is not None and not body.is_eof())
            super().connection_lost(exc)

    return Lingering


def end_as_framed(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Three ends of a response that aiohttp itself leaves open.

    A streamed body for an HTTP/1.0 client without a Content-Length ends with its connection
    (RFC 9112 §6.3); aiohttp says so, and keeps the connection if the client asked for that. What
    a handler streams in answer to HEAD, or with 204 and 304, is no body (§6.3): a client would take
    it for its next response. And a handler that raises an HTTPException, or returns None, after
    it has begun a response would have another one in the body of the first.

    ConnectionError: a part of another response is sent. aiohttp closes the connection then.
    """
    writer: Any = request._payload_writer
    if writer.output_size:
        raise ConnectionError("another response has begun")
    if request.method == "HEAD" or response.status in _WITHOUT_BODY:
        writer.length = 0
        ends_with_connection = False
    else:
        ends_with_connection = response.content_length is None
    if request.version < HttpVersion11:
        if ends_with_connection:
            response.force_close()
        # Not, if the program serves the same application elsewhere by itself.
        if isinstance(request.protocol, Handler):
            request.protocol.end_with(response if ends_with_connection else None)
