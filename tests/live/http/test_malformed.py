"""Malformed, oversized, incomplete and slow requests are refused, and leave nothing behind.

What two servers could read in two ways is refused and never repaired, and no worker gets it.
After each of these requests the proxy serves the next one as before.
"""

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.conftest import Launch, Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def hurried_run(launch: "Launch") -> "Cluster":
    """The demo application behind a proxy with short time-outs."""
    timeouts = {"head": "500ms", "body": "500ms"}
    return launch(
        web={"app": "penstock_worker.demo:app", "access_log": "off", "timeouts": timeouts}
    )


@pytest.fixture
def hurried(hurried_run: "Cluster") -> "Iterator[Cluster]":
    """Shared; and each test leaves it without a client, without a fault and serving."""
    yield hurried_run
    hurried_run.hang_up()
    assert hurried_run.connect().ask(GET).status == 200
    hurried_run.hang_up()
    hurried_run.until(lambda: hurried_run.metric("penstock_connections_active") == 0)
    assert "Traceback" not in hurried_run.said


def post(*fields: str, body: bytes = b"") -> bytes:
    lines = ["POST /echo HTTP/1.1", "Host: x", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def get(*fields: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


CHUNKED = "Transfer-Encoding: chunked"
REFUSED = {
    "binary noise": (400, bytes(range(128, 256))),
    "a zero byte": (400, b"\x00"),
    "a TLS hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x17" * 500),
    "an SSH greeting": (400, b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"),
    "words": (400, b"what is this\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: x\n\n"),
    "bare LF between fields": (400, b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"),
    "bare CR in a value": (400, get(b"Host: x", b"X: a\rb")),
    "a zero byte in a value": (400, get(b"Host: x", b"X: a\0b")),
    "a folded line": (400, get(b"Host: x", b"X: a", b" b")),
    "a blank before the colon": (400, get(b"Host: x", b"X : a")),
    "a field without a name": (400, get(b"Host: x", b": a")),
    "a blank in the target": (400, b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two blanks": (400, b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9 in words": (505, b"GET / HTTP/0.9\r\nHost: x\r\n\r\n"),
    "no Host": (400, get()),
    "two Hosts": (400, get(b"Host: x", b"Host: x")),
    "two hosts in one": (400, get(b"Host: x, y")),
    "a Host with a path": (400, get(b"Host: x/y")),
    "another host in the target": (400, b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    "CONNECT": (501, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"),
    "an unknown expectation": (417, get(b"Host: x", b"Expect: miracles")),
    "a target without end": (414, b"GET /" + b"a" * 20_000),
    "a head without end": (431, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000),
    "a head of one long field": (431, get(b"Host: x", b"X: " + b"a" * 20_000)),
    "too many fields": (431, get(b"Host: x", *(b"X: y" for _ in range(200)))),
    "length and chunked": (400, post("Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "chunked and length": (400, post(CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n")),
    "two lengths": (400, post("Content-Length: 5", "Content-Length: 6", body=b"12345")),
    "a list of lengths": (400, post("Content-Length: 5, 6", body=b"12345")),
    "a signed length": (400, post("Content-Length: +5", body=b"12345")),
    "a negative length": (400, post("Content-Length: -5", body=b"12345")),
    "a length of letters": (400, post("Content-Length: 0x5", body=b"12345")),
    "an endless length": (400, post("Content-Length: " + "9" * 40)),
    "an unknown coding": (501, post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "chunked twice": (400, post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "chunked in disguise": (400, post("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    "chunked in HTTP/1.0": (
        400, b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a chunk of size zz": (400, post(CHUNKED, body=b"zz\r\n")),
    "a chunk of size 0x5": (400, post(CHUNKED, body=b"0x5\r\n12345\r\n0\r\n\r\n")),
    "a chunk of size -5": (400, post(CHUNKED, body=b"-5\r\n12345\r\n0\r\n\r\n")),
    "a chunk of endless size": (400, post(CHUNKED, body=b"1" * 17 + b"\r\n")),
    "an endless chunk line": (400, post(CHUNKED, body=b"5;" + b"a" * 5000)),
    "a chunk longer than said": (400, post(CHUNKED, body=b"2\r\n12345\r\n0\r\n\r\n")),
    "a chunk with bare LF": (400, post(CHUNKED, body=b"2\n12\r\n0\r\n\r\n")),
    "a malformed trailer": (400, post(CHUNKED, body=b"0\r\nno colon\r\n\r\n")),
    "endless trailers": (400, post(CHUNKED, body=b"0\r\n" + b"A: b\r\n" * 5000)),
}  # fmt: skip


@pytest.mark.parametrize(("status", "data"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_clearly_http_is_refused_and_the_connection_ends(
    hurried: "Cluster", status: int, data: bytes
) -> None:
    wire = hurried.connect()
    answer = wire.ask(data)
    assert (answer.status, answer["Connection"]) == (status, "close")
    assert len(answer.body) < 100
    assert wire.is_ended()


@pytest.mark.parametrize("name", ["length and chunked", "two lengths", "two Hosts", "bare LF"])
def test_what_is_ambiguous_never_reaches_a_worker(
    penstock: "Penstock", origin: "Worker", name: str
) -> None:
    seen: list[bytes] = []

    def answer(wire: "Wire") -> None:
        while True:
            seen.append(wire.head())
            wire.send(OK)

    wire = penstock("--to", origin(answer).address).connect()
    status, data = REFUSED[name]
    # What follows could be smuggled in.
    assert wire.ask(data, GET).status == status
    assert wire.is_ended()
    assert seen == []


def test_garbage_behind_a_good_request_does_not_affect_its_answer(hurried: "Cluster") -> None:
    wire = hurried.connect()
    assert wire.ask(GET, GET, b"\x00garbage\r\n\r\n").status == 200
    assert wire.answer().status == 200
    assert wire.answer().status == 400
    assert wire.is_ended()


def test_a_request_may_come_byte_by_byte(hurried: "Cluster") -> None:
    wire = hurried.connect()
    for byte in post(CHUNKED, body=b"5;a=b\r\n12345\r\n1\r\n6\r\n0\r\nX-Sum: 1\r\n\r\n"):
        wire.send(bytes([byte]))
    assert wire.answer().body == b"123456"


@pytest.mark.parametrize("sent", [b"G", GET[:-1]], ids=["a byte", "nearly all"])
def test_a_head_that_does_not_end_in_time_is_408(hurried: "Cluster", sent: bytes) -> None:
    wire = hurried.connect()
    wire.send(sent)
    answer = wire.answer()
    assert (answer.status, answer["Connection"]) == (408, "close")
    assert wire.is_ended()


def test_a_second_head_has_no_more_time_than_the_first(hurried: "Cluster") -> None:
    wire = hurried.connect()
    assert wire.ask(GET).status == 200
    wire.send(GET[:-1])
    assert wire.answer().status == 408
    assert wire.is_ended()


def test_a_head_that_arrives_slowly_gets_no_more_time(hurried: "Cluster") -> None:
    wire = hurried.connect()
    ended = threading.Event()

    def drip() -> None:
        wire.send(b"GET / HTTP/1.1\r\nX: ")
        try:
            while not ended.wait(0.05):
                wire.send(b"a")
        except OSError:
            pass

    sender = threading.Thread(target=drip)
    sender.start()
    assert wire.answer().status == 408
    ended.set()
    sender.join()


def test_a_body_that_stops_arriving_is_cut_off(hurried: "Cluster") -> None:
    wire = hurried.connect()
    # The demo has begun its answer by then: all that can be done is to cut it.
    wire.send(post("Content-Length: 10", body=b"12345"))
    with pytest.raises(EOFError):
        wire.answer()


def test_a_client_that_stops_reading_is_cut_off(hurried: "Cluster") -> None:
    wire = hurried.connect()
    errors: Callable[[], float] = lambda: hurried.metric(  # noqa: E731
        "penstock_connection_errors_total", kind="send_timeout"
    )
    before = errors()
    wire.send(b"GET /bytes?n=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (64 * MIB))
    hurried.until(lambda: errors() == before + 1)
    assert len(wire.rest()) < 64 * MIB


def without_pool(run: "Cluster") -> float:
    """The proxy's descriptors, but for the connections to workers that it keeps for later."""
    return run.proxy.num_fds() - run.metric("penstock_fds", role="proxy", kind="upstream")


def test_a_thousand_silent_connections_are_closed_and_leave_no_descriptor(
    hurried: "Cluster",
) -> None:
    proxy = hurried.proxy
    # Twice: what the first thousand made the proxy allocate, the second must find again.
    sizes = []
    descriptors = without_pool(hurried)
    for _ in range(2):
        wires = [hurried.connect() for _ in range(1000)]
        # Others are served meanwhile.
        assert hurried.get("/")[0] == 200
        # They sent no request and get no response.
        assert all(wire.is_ended() for wire in wires)
        hurried.hang_up()
        hurried.until(lambda: hurried.metric("penstock_connections_active") == 0)
        hurried.until(lambda: without_pool(hurried) <= descriptors)
        sizes.append(proxy.memory_info().rss)
    assert sizes[1] - sizes[0] < 2 * MIB


def test_an_hour_of_nonsense_leaves_descriptors_and_memory_as_they_were(
    hurried: "Cluster",
) -> None:
    proxy = hurried.proxy

    def nonsense() -> None:
        for status, data in REFUSED.values():
            wire = hurried.connect()
            wire.send(data)
            assert wire.answer().status == status
            wire.reset()
        for data in (GET, GET[:-1], post("Content-Length: 10", body=b"12345"), b""):
            wire = hurried.connect()
            wire.send(data)
            wire.reset()

    for _ in range(3):
        nonsense()
    hurried.until(lambda: hurried.metric("penstock_connections_active") == 0)
    descriptors, memory = without_pool(hurried), proxy.memory_info().rss
    for _ in range(20):
        nonsense()
    hurried.until(lambda: hurried.metric("penstock_connections_active") == 0)
    hurried.until(lambda: without_pool(hurried) <= descriptors)
    assert proxy.memory_info().rss - memory < 4 * MIB
