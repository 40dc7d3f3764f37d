"""What must hold for any bytes, from a client or from a worker.

Requests: h11 and llhttp read what we accept in the same way. They see the same method, target,
fields, body and end in the client's bytes, and exactly that, once, in what the worker gets. It is
the same however the bytes are cut. Responses: a client gets what others read in the worker's
bytes, or a response that looks cut, or our 502; and the next client gets its own response.

We may be stricter than the other parsers, never laxer. The exceptions are what RFC 9112 reads in
one way although they refuse it: they get these in another form (`tests.support.proxy.canonical`),
and what we forward as it is. Two more are in `readings`: h11 refuses empty lines before a request,
which by section 2.2 we skip; llhttp refuses methods that it does not know.
"""

from typing import Final, NamedTuple, cast
from zlib import crc32

import pytest
from tests.proxy.conftest import Harness, Wire
from tests.support.proxy.canonical import canonical_request, canonical_response
from tests.support.proxy.readings import (
    Reading,
    ReadingDiffersError,
    h11_request,
    h11_response,
    llhttp_request,
    llhttp_response,
    our_request,
)

from penstock_proxy.errors import RejectedError
from penstock_proxy.http1 import parser, target_forms

MAX_INPUT: Final = 1000
"""Below every limit of the harness: these are not tested here."""
_DONE: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_NEXT: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
_NEVER_IN_TRAILERS: Final = _LENGTHS | {b"host", b"set-cookie", b"trailer", b"connection"}
_ID: Final = b"x-request-id"
"""It differs for each request: a client's own id is not trusted here."""
_OURS: Final = frozenset(
    {b"host", b"connection", b"upgrade", b"te", b"transfer-encoding", b"expect", _ID}
    | {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via"}
)


class Stage:
    """A harness that serves one input after the other."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self.harness = Harness(self._patch)
        self.harness.build()

    def close(self) -> None:
        """Undo the patches of the harness, for the tests that follow."""
        self._patch.undo()

    def clear(self) -> None:
        harness = self.harness
        for client in harness.connections:
            cast("Wire", client.transport).reset()
        for wire in harness.network.wires:
            wire.reset()
        harness.network.wires.clear()
        harness.network.dialed.clear()
        harness.loop.run()


def _pieces(data: bytes) -> list[bytes]:
    """Cut it; one in eight byte by byte. The same input is always cut in the same way."""
    step = 1 + crc32(data) % 8
    return [data[at : at + step] for at in range(0, len(data), step)]


# -- requests


class Expected(NamedTuple):
    """The expected result of a client's stream."""

    readings: list[Reading]
    status: int
    """The status that ends it. 0: none, or unknown because the rest is incomplete."""
    open: bool
    """More requests could follow."""


class Outcome(NamedTuple):
    """The actual result of a client's stream."""

    received: list[Reading]
    statuses: list[int]
    refused: bool


def check_request(stage: Stage, data: bytes) -> None:
    """Raise AssertionError or OtherwiseError if something does not hold."""
    expected = _expect(data)
    whole, pieces = serve(stage, [data]), serve(stage, _pieces(data))
    count = len(expected.readings)
    assert whole.statuses[:count] == [204] * count
    assert len(whole.statuses) - count == whole.refused
    if expected.status:
        assert whole.statuses[count:] == [expected.status]
    assert whole.refused <= (bool(expected.status) or expected.open)
    # Garbage is refused as early as possible, so only its status may differ.
    assert whole.refused == pieces.refused
    assert whole.received == pieces.received
    assert len(whole.received) == count
    for meant, got in zip(expected.readings, whole.received, strict=True):
        _check_forwarded(meant, got)


def _expect(data: bytes) -> Expected:
    readings: list[Reading] = []
    while data:
        try:
            reading = our_request(data)
        except RejectedError as rejected:
            return Expected(readings, rejected.fault.status, False)
        if reading is None:
            return Expected(readings, 0, True)
        _compare_request(data, reading)
        readings.append(reading)
        if _closes(reading):
            return Expected(readings, 0, False)
        data = data[reading.end :]
    return Expected(readings, 0, True)


def _compare_request(data: bytes, ours: Reading) -> None:
    message = canonical_request(data[: ours.end])
    data = message + data[ours.end :]
    ours = ours._replace(end=len(message))
    begin = len(data) - len(parser.skip_empty_lines(data))
    first, second = h11_request(data[begin:]), llhttp_request(data, ours.end)
    for other in (first._replace(end=first.end + begin), second):
        if _plain(other) != _plain(ours):
            raise ReadingDiffersError(f"{_plain(ours)} is {_plain(other)}")


def _plain(reading: Reading) -> Reading:
    """h11 lowers the case of Transfer-Encoding."""
    return reading._replace(
        fields=[
            (name, value.lower() if name == b"transfer-encoding" else value)
            for name, value in reading.fields
        ]
    )


def _closes(reading: Reading) -> bool:
    value = b",".join(value for name, value in reading.fields if name == b"connection").lower()
    options = {option.strip(b" \t") for option in value.split(b",")}
    return b"close" in options if reading.start[2] else b"keep-alive" not in options


def serve(stage: Stage, pieces: list[bytes]) -> Outcome:
    harness = stage.harness
    client = harness.client()
    received: list[Reading] = []
    try:
        for piece in pieces:
            client.send(piece)
        while (reading := _take(harness)) is not None:
            received.append(reading)
            harness.worker.send(_DONE)
        statuses = [int(part[:3]) for part in client.received().split(b"HTTP/1.1 ")[1:]]
        refused = statuses[-1:] > [399]
        if refused:
            assert client.ended
            assert not any(wire.written and not wire.lost for wire in harness.network.wires)
        return Outcome(received, statuses, refused)
    finally:
        stage.clear()


def _take(harness: Harness) -> Reading | None:
    """The request that the worker got, if it is complete."""
    for wire in harness.network.wires:
        data = bytes(wire.written)
        if not data or wire.lost:
            continue
        try:
            reading = h11_request(data)
        except ReadingDiffersError as other:
            if "NEED_DATA" in str(other):
                return None
            raise
        assert reading.end == len(data), "two requests at once"
        assert _plain(llhttp_request(data, len(data))) == _plain(reading)
        wire.written.clear()
        # Chunks of another size are the same body.
        return reading._replace(fields=[pair for pair in reading.fields if pair[0] != _ID], end=0)
    return None


def _check_forwarded(meant: Reading, got: Reading) -> None:
    method, target, _ = meant.start
    assert got.start == (method, target_forms.for_worker(method, target), 1)
    assert got.body == meant.body
    assert {*got.trailers} <= {*meant.trailers}
    forwarded_fields = {pair for pair in got.fields if pair[0] not in _OURS}
    assert forwarded_fields <= {*meant.fields}
    assert [name for name, _ in got.fields].count(b"host") == 1
    if expected := [value for name, value in got.fields if name == b"expect"]:
        assert expected == [b"100-continue"]
        assert any(name == b"expect" and b"100-" in value for name, value in meant.fields)
    forwarded = [value for name, value in got.fields if name == b"x-forwarded-for"]
    assert forwarded == [b"192.0.2.1"]


# -- responses


def check_response(stage: Stage, data: bytes) -> None:
    """The same for a worker's stream; its first byte selects the request and the end."""
    mode, response = data[:1], data[1:]
    method = b"HEAD" if mode in b"1357" else b"GET"
    offer = b"Connection: upgrade\r\nUpgrade: websocket\r\n" if mode in b"2367" else b""
    reset = mode in b"4567"
    request = method + b" / HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n"
    whole = _answer(stage, request, [response], reset=reset)
    pieces = _answer(stage, request, _pieces(response), reset=reset)
    assert whole.start == pieces.start
    if whole.start[0] != b"101":
        assert (whole.body, whole.trailers) == (pieces.body, pieces.trailers)
    if whole.start[0] == b"101":
        assert offer
    elif whole.end:
        _check_answer(response, whole, method, closed=not reset)
    _check_next(stage, request, response)


def _check_next(stage: Stage, request: bytes, response: bytes) -> None:
    """Whatever the worker sent to one client, the next client gets its own response."""
    harness = stage.harness
    try:
        harness.client().send(request)
        worker = harness.worker
        for piece in _pieces(response):
            worker.send(piece)
        for wire in harness.network.wires:
            wire.written.clear()
        client = harness.client()
        client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        (wire,) = (wire for wire in harness.network.wires if wire.written)
        wire.send(_NEXT)
        data = client.received()
        reading = h11_response(data)
        assert (reading.body, reading.end) == (b"next", len(data))
    finally:
        stage.clear()


def _answer(stage: Stage, request: bytes, pieces: list[bytes], *, reset: bool) -> Reading:
    """What the client reads; `end` is 0 if it is cut, or is not the worker's response."""
    harness = stage.harness
    try:
        client = harness.client()
        client.send(request)
        worker = harness.worker
        for piece in pieces:
            worker.send(piece)
        if not worker.lost:
            worker.reset() if reset else worker.send_eof()
        data = client.received()
        if _is_switched(data):
            return Reading((b"101", b"", 1), [], b"", [], 0)
        try:
            reading = h11_response(data, request.split(b" ", 1)[0], ended=client.lost)
        except ReadingDiffersError as cut:
            if "peer closed" not in str(cut) or not client.lost:
                raise
            return Reading((b"cut", b"", 1), [], b"", [], 0)
        assert reading.end == len(data)
        return reading._replace(end=0) if reading.start[0] in (b"502", b"504") else reading
    finally:
        stage.clear()


def _is_switched(data: bytes) -> bool:
    while data.startswith(b"HTTP/1.1 1") and not data.startswith(b"HTTP/1.1 101"):
        data = data.partition(b"\r\n\r\n")[2]
    return data.startswith(b"HTTP/1.1 101")


def _check_answer(response: bytes, client: Reading, method: bytes, *, closed: bool) -> None:
    """`client` has a response that looks whole. Others must read the same in the worker's bytes."""
    response = canonical_response(response, method)
    other = h11_response(response, method, ended=closed)
    assert (other.start[0], other.body) == (client.start[0], client.body)
    assert {*client.trailers} <= {*other.trailers}
    assert not {name for name, _ in client.trailers} & _NEVER_IN_TRAILERS
    names = {name for name, _ in other.fields}
    if method != b"HEAD" and (other.start[0] in (b"204", b"304") or names & _LENGTHS):
        # A response until close has no end that llhttp could check.
        assert _plain(llhttp_response(response, other.end)) == _plain(other)
    ours = {b"connection", b"transfer-encoding"}
    if client.start[0] == b"426":
        ours.add(b"upgrade")
        said = b", ".join(value for name, value in other.fields if name == b"upgrade")
        assert {value for name, value in client.fields if name == b"upgrade"} <= {said}
    else:
        assert b"upgrade" not in {name for name, _ in client.fields}
    assert {pair for pair in client.fields if pair[0] not in ours} <= {*other.fields}
