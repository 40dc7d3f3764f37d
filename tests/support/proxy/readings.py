"""How other parsers read the same bytes: h11, and llhttp (Node's parser) through httptools.

A reading is one message of a stream. h11 reports where the next message begins. llhttp gets the
bytes up to where our reading ends: it must be done there, and not one byte earlier. What they
refuse raises `ReadingDiffersError`.
"""

from typing import Any, Final, NamedTuple

import h11
import httptools

from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.http1 import parser as http1
from penstock_proxy.http1.chunked import Chunked

PLAIN_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"})
MAX_EVENT: Final = 1 << 20
Fields = list[tuple[bytes, bytes]]


class ReadingDiffersError(Exception):
    """Another parser reads this in another way."""


class Reading(NamedTuple):
    """One request, or one response (then `start` has the status and no target)."""

    start: tuple[bytes, bytes, int]
    fields: Fields
    body: bytes
    trailers: Fields
    end: int
    """Where the next message begins."""


def fields_of(block: bytes) -> Fields:
    pairs = (line.partition(b":") for line in block.split(b"\r\n") if line)
    return [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]


def our_request(data: bytes) -> Reading | None:
    """The first request of a stream as we read it; None: more has to come. RejectedError."""
    begin = len(data) - len(http1.skip_empty_lines(data))
    head_end = data.find(b"\r\n\r\n", begin) + 4
    if head_end < 4:
        return None
    head = data[begin:head_end]
    line = http1.parse_request_line(head)
    framing = http1.parse_fields(head[line.end :], BAD_REQUEST)
    http1.check_request(line, framing)
    start = (line.method, line.target, line.minor)
    fields = [(name, value) for name, value, _ in framing.lines]
    if framing.chunked:
        chunked = Chunked(BAD_REQUEST)
        body = b"".join(chunked.feed(data[head_end:]))
        if not chunked.done:
            return None
        end = len(data) - len(chunked.rest)
        return Reading(start, fields, body, fields_of(chunked.trailers), end)
    end = head_end + max(0, framing.length)
    if end > len(data):
        return None
    return Reading(start, fields, data[head_end:end], [], end)


def h11_request(data: bytes) -> Reading:
    """The first request as h11 reads it."""
    return _h11(h11.Connection(h11.SERVER, MAX_EVENT), data)


def h11_response(data: bytes, method: bytes = b"GET", *, ended: bool = False) -> Reading:
    """The first final response as h11 reads it; `ended`: the connection ends behind it."""
    client = h11.Connection(h11.CLIENT, MAX_EVENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    return _h11(client, data, ended=ended)


def _h11(connection: h11.Connection, data: bytes, *, ended: bool = False) -> Reading:
    try:
        connection.receive_data(data)
        if ended:
            connection.receive_data(b"")
        head = connection.next_event()
        while isinstance(head, h11.InformationalResponse):
            head = connection.next_event()
        body = b""
        if not isinstance(head, h11.Request | h11.Response):
            raise ReadingDiffersError(f"h11 says {head!r}")
        while isinstance(event := connection.next_event(), h11.Data):
            body += bytes(event.data)
    except h11.RemoteProtocolError as error:
        raise ReadingDiffersError(f"h11: {error}") from error
    if not isinstance(event, h11.EndOfMessage):
        raise ReadingDiffersError(f"h11 says {event!r}")
    left = len(connection.trailing_data[0])
    return Reading(
        _start(head),
        list(head.headers),
        body,
        list(event.headers),
        len(data) - left,
    )


def _start(head: h11.Request | h11.Response) -> tuple[bytes, bytes, int]:
    if isinstance(head, h11.Request):
        return head.method, head.target, int(head.http_version[2:])
    return b"%d" % head.status_code, b"", int(head.http_version[2:])


class _Llhttp:
    """The callbacks of llhttp."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: Fields = []
        self.trailers: Fields = []
        self.body = b""
        self.begun = 0
        self.heads = 0
        self.complete = 0

    def on_message_begin(self) -> None:
        self.begun += 1
        self.fields = []
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        kept = self.trailers if self.heads == self.begun else self.fields
        kept.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def llhttp_request(data: bytes, end: int) -> Reading:
    """The first request as llhttp reads it. It knows few methods: others become PUT."""
    method = data.lstrip(b"\r\n").split(b" ", 1)[0]
    skipped = len(data) - len(data.lstrip(b"\r\n"))
    grown = 0
    if method not in PLAIN_METHODS:
        data = data[:skipped] + b"PUT" + data[skipped + len(method) :]
        grown = 3 - len(method)
    parsed = _Llhttp()
    parser = httptools.HttpRequestParser(parsed)
    _llhttp(parser, parsed, data[: end + grown], done=1)
    version = parser.get_http_version()
    return Reading(
        (method, parsed.url, int(version[2:])), parsed.fields, parsed.body, parsed.trailers, end
    )


def llhttp_response(data: bytes, end: int) -> Reading:
    """The first final response as llhttp reads it, for any method but HEAD."""
    parsed = _Llhttp()
    parser = httptools.HttpResponseParser(parsed)
    interim, at = 0, 0
    while data.startswith(b"1", at + 9):
        interim, at = interim + 1, data.index(b"\r\n\r\n", at) + 4
    _llhttp(parser, parsed, data[:end], done=interim + 1)
    status = b"%d" % parser.get_status_code()
    version = int(parser.get_http_version()[2:])
    return Reading((status, b"", version), parsed.fields, parsed.body, parsed.trailers, end)


def _llhttp(parser: Any, parsed: _Llhttp, data: bytes, *, done: int) -> None:
    try:
        parser.feed_data(data[:-1])
        if parsed.complete >= done:
            raise ReadingDiffersError("llhttp: it ends earlier")
        parser.feed_data(data[-1:])
    except httptools.HttpParserUpgrade:
        # It stops after the head of a request with Upgrade, so the message is complete.
        pass
    except httptools.HttpParserError as error:
        raise ReadingDiffersError(f"llhttp: {error!r}") from error
    if parsed.complete != done:
        raise ReadingDiffersError("llhttp: it does not end there")
