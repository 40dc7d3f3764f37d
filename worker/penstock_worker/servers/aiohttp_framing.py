"""How an aiohttp response ends, and the connection that it ends.

Owns what aiohttp leaves open of that: a body whose end is the end of the connection, a body where
none may be, and a client that still sends when its connection is closed. Must not know why a
connection is closed.
"""

from typing import Any, Final

from aiohttp import HttpVersion11, web

from penstock_worker.net.lingering_close import LingeringClients

_WITHOUT_BODY: Final = frozenset((204, 304))


def lingering(clients: LingeringClients) -> type[web.RequestHandler]:
    """aiohttp's protocol, whose clients may finish what they send. aiohttp lingers for a body that
    the program has not read, but for ten seconds only, and resets what it refuses."""

    class Lingering(web.RequestHandler):
        __slots__ = ("_body",)

        def _handle_request(self, request: web.BaseRequest, *rest: Any) -> Any:
            self._body = request.content
            return super()._handle_request(request, *rest)

        def connection_lost(self, exc: BaseException | None) -> None:
            if exc is None:
                body = getattr(self, "_body", None)
                # The rest of it may be on its way, though nothing has come in this moment.
                clients.take_over(self.transport, expected=body is not None and not body.is_eof())
            super().connection_lost(exc)

    return Lingering


def end_as_framed(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Two ends of a response that aiohttp itself leaves open.

    A streamed body for an HTTP/1.0 client without a Content-Length ends with its connection
    (RFC 9112 §6.3); aiohttp says so, and keeps the connection if the client asked for that. What
    a handler streams in answer to HEAD, or with 204 and 304, is no body (§6.3): a client would take
    it for its next response.
    """
    if request.method == "HEAD" or response.status in _WITHOUT_BODY:
        request._payload_writer.length = 0
    elif request.version < HttpVersion11 and response.content_length is None:
        response.force_close()
