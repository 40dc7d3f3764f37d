"""Answers of uvicorn's httptools protocol to HTTP/1.0 clients.

Owns how such a response is framed. uvicorn sends chunks to any client, and an HTTP/1.0 client
knows none: it would take their sizes for a part of the body (RFC 9112 §6.1 forbids it). Without a
Content-Length the end of the connection is the end of the body. With one, the connection is kept
for a client that has asked for that (§9.3). uvicorn's other protocol, over h11, frames by itself.
A program sees nothing of this.
"""

from collections.abc import Awaitable, Iterable
from typing import Any, Final

from penstock_worker.servers.asgi_websockets import Message

_WITHOUT_BODY: Final = frozenset((204, 304))
_Headers = Iterable[tuple[bytes, bytes]]


def frame_for_http10(protocol_class: Any) -> Any:
    """uvicorn's protocol, with responses that an HTTP/1.0 client can read."""
    complete: Any = getattr(protocol_class, "on_headers_complete", None)
    if complete is None:
        return protocol_class

    class Framed(protocol_class):  # type: ignore[misc]
        def on_headers_complete(self) -> None:
            complete(self)
            if self.scope["http_version"] == "1.0":
                cycle = self.cycle
                # Not of this request if it became a WebSocket.
                if cycle is not None and cycle.scope is self.scope:
                    # Its task has not begun yet.
                    cycle.send = _Response(cycle).send

    return Framed


class _Response:
    """One response. `cycle` is uvicorn's record of the request."""

    __slots__ = ("_cycle", "_ends_with_connection", "_send")

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._ends_with_connection = False
        cycle.keep_alive = b"keep-alive" in _options(cycle.scope["headers"])
        # RFC 9110 §10.1.1: an HTTP/1.0 client knows no 100 either.
        cycle.waiting_for_100_continue = False

    def send(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if message["type"] == "http.response.start" and not cycle.response_started:
            message = {**message, "headers": self._framed(message)}
        elif self._ends_with_connection:
            # uvicorn compares each piece with what is left of Content-Length. There is none.
            cycle.expected_content_length = len(message.get("body", b""))
        sent: Awaitable[None] = self._send(message)
        return sent

    def _framed(self, message: Message) -> list[tuple[bytes, bytes]]:
        cycle = self._cycle
        given = [(name.lower(), value) for name, value in message.get("headers", ())]
        headers = [field for field in given if field[0] != b"transfer-encoding"]
        has_body = cycle.scope["method"] != "HEAD" and message["status"] not in _WITHOUT_BODY
        if has_body and not any(name == b"content-length" for name, _ in headers):
            self._ends_with_connection = True
            cycle.keep_alive = False
            # Neither chunks nor a length: uvicorn adds no field then.
            cycle.chunked_encoding = False
        options = _options(headers)
        if cycle.keep_alive and not options & {b"close", b"keep-alive"}:
            headers.append((b"connection", b"keep-alive"))
        elif not cycle.keep_alive and b"keep-alive" in options:
            headers = [field for field in headers if field[0] != b"connection"]
        return headers


def _options(headers: _Headers) -> set[bytes]:
    """The options of all Connection fields; names are in lower case."""
    fields = [value for name, value in headers if name == b"connection"]
    return {option.strip().lower() for field in fields for option in field.split(b",")}
