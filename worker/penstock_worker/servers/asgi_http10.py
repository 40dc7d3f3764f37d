"""Answers of uvicorn's protocols to HTTP/1.0 clients.

Owns how such a response is framed. uvicorn sends chunks to any client, and an HTTP/1.0 client
knows none: it would take their sizes for a part of the body (RFC 9112 §6.1 forbids it). Without a
Content-Length the end of the connection is the end of the body. With one, the connection is kept
for a client that has asked for that (§9.3). uvicorn's other protocol, over h11, frames by itself.

A body that ends with its connection and is broken off would look complete (§8). So its connection
is one that the kernel resets, until all of it is written. The program may raise, return early or
be cancelled, the client may end its side, the process may be killed: there is one rule for all.
A program sees nothing of this.
"""

from collections.abc import Awaitable, Iterable
from typing import Any, Final

from penstock_worker.net.abortive_close import end_on_close, reset_on_close
from penstock_worker.servers.asgi_websockets import Message

_WITHOUT_BODY: Final = frozenset((204, 304))
_Headers = Iterable[tuple[bytes, bytes]]


def frame_for_http10(protocol_class: Any) -> Any:
    """uvicorn's protocol, with responses that an HTTP/1.0 client can read, and whose end it can
    trust."""
    if hasattr(protocol_class, "on_headers_complete"):
        return _framed(protocol_class)
    if hasattr(protocol_class, "handle_events"):
        return _guarded(protocol_class)
    return protocol_class


def _framed(protocol_class: Any) -> Any:
    """The one over httptools."""
    complete: Any = protocol_class.on_headers_complete

    class Framed(protocol_class):  # type: ignore[misc]
        def on_headers_complete(self) -> None:
            complete(self)
            if self.scope["http_version"] == "1.0":
                cycle = self.cycle
                # Not of this request if it became a WebSocket.
                if cycle is not None and cycle.scope is self.scope:
                    # Its task has not begun yet.
                    cycle.send = _Response(self, cycle).send

    return Framed


def _guarded(protocol_class: Any) -> Any:
    """The one over h11."""
    handle: Any = protocol_class.handle_events

    class Guarded(protocol_class):  # type: ignore[misc]
        def handle_events(self) -> None:
            before = self.cycle
            handle(self)
            cycle = self.cycle
            if cycle is not before and cycle.scope["http_version"] == "1.0":
                # Its task has not begun yet.
                cycle.send = _GuardedResponse(self, cycle).send

    return Guarded


class _Response:
    """One response over httptools. `cycle` is uvicorn's record of the request."""

    __slots__ = ("_cycle", "_ends_with_connection", "_protocol", "_send")

    def __init__(self, protocol: Any, cycle: Any) -> None:
        self._protocol = protocol
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
        if _has_body(cycle, message) and not _has(headers, b"content-length"):
            self._ends_with_connection = True
            cycle.keep_alive = False
            # Neither chunks nor a length: uvicorn adds no field then.
            cycle.chunked_encoding = False
            _reset_unless_complete(self._protocol, cycle)
        options = _options(headers)
        if cycle.keep_alive and not options & {b"close", b"keep-alive"}:
            headers.append((b"connection", b"keep-alive"))
        elif not cycle.keep_alive and b"keep-alive" in options:
            headers = [field for field in headers if field[0] != b"connection"]
        return headers


class _GuardedResponse:
    """One response over h11, which frames it."""

    __slots__ = ("_cycle", "_protocol", "_send")

    def __init__(self, protocol: Any, cycle: Any) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._send = cycle.send

    def send(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if message["type"] == "http.response.start" and not cycle.response_started:
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            # If the program has named chunks, h11 drops both fields.
            is_framed = _has(headers, b"content-length") and not _has(headers, b"transfer-encoding")
            if _has_body(cycle, message) and not is_framed:
                _reset_unless_complete(self._protocol, cycle)
        sent: Awaitable[None] = self._send(message)
        return sent


def _reset_unless_complete(protocol: Any, cycle: Any) -> None:
    """From now on, whoever closes the connection resets it, unless the response is complete and
    all of it is with the kernel. Nothing of this is on the way of a request of HTTP/1.1."""
    transport = cycle.transport
    if transport.is_closing():
        # uvloop still tells its descriptor, which may be another connection's by now.
        return
    fd: int = transport.get_extra_info("socket").fileno()

    def connection_lost(exc: Exception | None) -> None:
        # What the class has. The transport has written all, and not closed its descriptor yet.
        del protocol.connection_lost
        if exc is None and cycle.response_complete:
            end_on_close(fd)
        protocol.connection_lost(exc)

    reset_on_close(fd)
    protocol.connection_lost = connection_lost


def _has_body(cycle: Any, message: Message) -> bool:
    return cycle.scope["method"] != "HEAD" and message["status"] not in _WITHOUT_BODY


def _has(headers: _Headers, wanted: bytes) -> bool:
    return any(name == wanted for name, _ in headers)


def _options(headers: _Headers) -> set[bytes]:
    """The options of all Connection fields; names are in lower case."""
    fields = [value for name, value in headers if name == b"connection"]
    return {option.strip().lower() for field in fields for option in field.split(b",")}
