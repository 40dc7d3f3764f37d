"""A client that still sends when it is answered gets its answer, and what it was promised.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.config import Limits, Timeouts
from penstock_proxy.errors import MAX_CONNECTIONS
from penstock_proxy.http import client_closing
from penstock_proxy.http.client_closing import LINGER_IDLE_S, LINGER_S, MAX_SKIPPED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n"


def post(*fields: str, minor: int = 1) -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"POST / HTTP/1.{minor}\r\nHost: a\r\n{lines}\r\n".encode()


POST = post("Content-Length: 3")
LARGE = post(f"Content-Length: {MAX_SKIPPED + 1}")


def answered_early(harness: Harness, request: bytes, answer: bytes = OK) -> tuple[Wire, bytes]:
    """The client, whose request is answered before its end, and the answer's head."""
    client = harness.client()
    client.send(request)
    harness.worker.send(answer)
    return client, client.received().partition(b"\r\n\r\n")[0] + b"\r\n"


def requests(harness: Harness) -> int:
    return sum(harness.service.counters.requests.values())


# -- the lingering close


def lingering(harness: Harness) -> Wire:
    client, head = answered_early(harness, LARGE)
    assert CLOSE in head
    assert client.ended
    return client


def test_a_client_may_go_on_to_send_for_as_long_as_something_comes(harness: Harness) -> None:
    client = lingering(harness)
    for _ in range(5):
        harness.advance(LINGER_IDLE_S)
        assert [client.lost] == [False]
        client.send(b"x" * 1000)
    harness.advance(LINGER_IDLE_S + 1.0)
    assert client.lost
    assert harness.network.wires[0].lost
    assert requests(harness) == 1


def test_a_client_that_sends_for_ever_is_closed(harness: Harness) -> None:
    client = lingering(harness)
    for _ in range(int(LINGER_S) - 1):
        client.send(b"x" * 100_000)
        harness.advance(1.0)
    assert [client.lost] == [False]
    for _ in range(3):
        client.send(b"x" * 100_000)
        harness.advance(1.0)
    assert client.lost


def test_a_client_that_has_all_and_closes_is_closed_at_once(harness: Harness) -> None:
    client = lingering(harness)
    client.send(b"x" * 1000)
    client.send_eof()
    assert client.lost


def test_a_client_that_is_slow_to_take_its_answer_has_time_for_it(harness: Harness) -> None:
    client = harness.client()
    client.send(LARGE)
    client.full = True
    harness.worker.send(OK)
    harness.advance(LINGER_IDLE_S + 1.0)
    assert [client.lost] == [False]
    client.unstall()
    assert client.received().endswith(b"ok")
    harness.advance(LINGER_IDLE_S + 1.0)
    assert client.lost


def test_a_client_that_never_takes_its_answer_is_closed(harness: Harness) -> None:
    client = harness.client()
    client.send(LARGE)
    client.full = True
    harness.worker.send(OK)
    harness.advance(Timeouts().body + LINGER_IDLE_S + 1.0)
    harness.advance(1.0)
    assert client.lost


@pytest.mark.parametrize("sent", [b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"\x16\x03\x01"])
def test_what_is_refused_is_answered_in_the_same_way(harness: Harness, sent: bytes) -> None:
    client = harness.client()
    client.send(sent)
    assert client.ended
    harness.advance(LINGER_IDLE_S - 1.0)
    client.send(b"x")
    harness.advance(LINGER_IDLE_S - 1.0)
    assert [client.lost] == [False]
    harness.advance(2.0)
    assert client.lost


def test_a_body_that_is_too_large_is_answered_in_the_same_way(harness: Harness) -> None:
    harness.build(body=10)
    client = harness.client()
    client.send(post("Content-Length: 11"))
    assert client.received().startswith(b"HTTP/1.1 413 ")
    client.send(b"x" * 11)
    assert client.ended
    assert [client.lost] == [False]
    assert harness.network.wires == []


def test_a_stop_does_not_wait_for_it(harness: Harness) -> None:
    before = lingering(harness)
    harness.service.drain()
    during = harness.client()
    during.send(LARGE)
    harness.worker.send(OK)
    for _ in range(3):
        before.send(b"x")
        during.send(b"x")
        harness.advance(0.5)
    assert [before.lost, during.lost] == [False, False]
    for _ in range(3):
        before.send(b"x")
        during.send(b"x")
        harness.advance(0.5)
    assert before.lost
    assert during.lost


def test_it_makes_room_for_others(harness: Harness) -> None:
    client = lingering(harness)
    (closing,) = harness.connections
    since = closing.idle_since
    harness.advance(2.0)
    client.send(b"x")
    assert closing.idle_since == since <= harness.now - 2.0
    assert closing.end_idle(MAX_CONNECTIONS)
    harness.loop.run()
    assert client.lost


def test_new_time_outs_do_not_change_it(harness: Harness) -> None:
    client = lingering(harness)
    (closing,) = harness.connections
    before = harness.service.timeouts
    harness.service.timeouts = Timeouts(keepalive=1000.0, head=1000.0)
    closing.timeouts_changed(before)
    harness.advance(LINGER_IDLE_S + 1.0)
    assert client.lost


# -- a promise


@pytest.mark.parametrize("answer", [OK, CHUNKS + b"2\r\nok\r\n0\r\n\r\n"], ids=["length", "chunks"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("begun", [b"", b"a"])
def test_the_rest_of_a_small_body_is_read_and_the_next_request_served(
    harness: Harness, answer: bytes, begun: bytes, *, split: bool
) -> None:
    client = harness.client()
    client.send(POST + begun)
    first = harness.worker
    at = answer.index(b"\r\n\r\n") + 4 if split else len(answer)
    for piece in (answer[:at], answer[at:]):
        if piece:
            first.send(piece)
    assert CLOSE not in client.received()
    assert first.lost, "it may take the rest for a request"
    assert requests(harness) == 1
    for byte in b"abc"[len(begun) :]:
        client.send(bytes([byte]))
    assert len(harness.network.wires) == 1
    client.send(GET)
    assert harness.worker is not first
    assert harness.worker.received().startswith(b"GET / ")
    harness.worker.send(OK)
    assert client.received() == OK
    assert not client.ended
    assert requests(harness) == 2


def test_the_next_request_may_come_with_the_rest(harness: Harness) -> None:
    client, head = answered_early(harness, POST)
    assert CLOSE not in head
    client.send(b"abc" + GET + GET[:9])
    harness.worker.send(OK)
    assert client.received() == OK
    client.send(GET[9:])
    harness.worker.send(OK)
    assert client.received() == OK


def test_http_1_0_is_promised_the_same(harness: Harness) -> None:
    request = post("Content-Length: 3", "Connection: keep-alive", minor=0)
    client, head = answered_early(harness, request)
    assert b"Connection: keep-alive\r\n" in head
    client.send(b"abc" + GET)
    harness.worker.send(OK)
    assert client.received() == OK
    client, head = answered_early(harness, post("Content-Length: 3", minor=0))
    assert CLOSE in head
    assert client.ended


@pytest.mark.parametrize(
    "request_",
    [
        LARGE,
        post("Transfer-Encoding: chunked"),
        post("Transfer-Encoding: chunked") + b"1\r\na\r\n",
        post("Content-Length: 3", "Expect: 100-continue"),
        post("Content-Length: 3", "Connection: close"),
    ],
    ids=["large", "chunks", "begun chunks", "expect", "close"],
)
@pytest.mark.parametrize("answer", [OK, OK[:-1], CHUNKS])
def test_what_is_not_promised_is_said_at_once(
    harness: Harness, request_: bytes, answer: bytes
) -> None:
    client, head = answered_early(harness, request_, answer)
    assert CLOSE in head
    if answer is not OK:
        assert not client.ended
        harness.worker.send(b"k" if answer is not CHUNKS else b"0\r\n\r\n")
    assert client.ended
    assert [client.lost] == [False]
    client.send(b"abc" + GET)
    assert len(harness.network.wires) == 1
    assert harness.worker.lost


def test_the_size_that_is_left_decides(harness: Harness) -> None:
    client, head = answered_early(harness, LARGE + b"x")
    assert CLOSE not in head
    client.send(b"x" * MAX_SKIPPED + GET)
    harness.worker.send(OK)
    assert client.received() == OK


def test_a_client_that_was_told_to_go_on_does(harness: Harness) -> None:
    client = harness.client()
    client.send(post("Content-Length: 3", "Expect: 100-continue"))
    harness.worker.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    harness.worker.send(OK)
    assert CLOSE not in client.received()
    client.send(b"abc" + GET)
    harness.worker.send(OK)
    assert client.received() == OK


def test_a_connection_whose_request_was_written_in_whole_is_used_again(harness: Harness) -> None:
    client = harness.client()
    client.send(POST)
    harness.worker.send(OK[:-1])
    client.send(b"abc")
    harness.worker.send(OK[-1:])
    assert client.received() == OK
    assert not harness.worker.lost
    client.send(GET)
    assert len(harness.network.wires) == 1
    harness.worker.send(OK)


BODY_S = Timeouts().body
RATE = Limits().min_rate


def test_the_rest_has_as_long_as_any_body(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    harness.advance(BODY_S - 1.0)
    client.send(b"abc" + GET)
    harness.worker.send(OK)
    assert client.received() == OK
    client, _ = answered_early(harness, POST)
    harness.advance(BODY_S - 1.0)
    client.send(b"a")
    assert not client.ended
    harness.advance(2.0)
    # Its answer is not destroyed by what it may have on the way.
    assert [client.ended, client.lost] == [True, False]
    client.send(b"bc")
    harness.advance(LINGER_IDLE_S + 1.0)
    assert client.lost


def test_the_rest_may_come_as_slowly_as_any_body(harness: Harness) -> None:
    size = 100 * RATE
    client, _ = answered_early(harness, post(f"Content-Length: {size}"))
    for _ in range(100):
        harness.advance(1.0)
        client.send(b"x" * RATE)
    client.send(GET)
    harness.worker.send(OK)
    assert client.received() == OK
    slower, _ = answered_early(harness, post(f"Content-Length: {size}"))
    for _ in range(int(2 * BODY_S) + 2):
        harness.advance(1.0)
        slower.send(b"x" * (RATE // 2))
    assert slower.ended


def test_without_a_least_rate_only_silence_ends_it(harness: Harness) -> None:
    harness.build(min_rate=0)
    client, _ = answered_early(harness, post("Content-Length: 10"))
    for _ in range(9):
        harness.advance(BODY_S - 1.0)
        client.send(b"x")
    assert not client.ended
    harness.advance(BODY_S + 1.0)
    assert client.ended


def test_a_client_that_still_takes_its_answer_is_waited_for(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([5000, 4000, 3000, 3000])
    monkeypatch.setattr(client_closing, "unacknowledged", lambda _sock: next(left))
    client = lingering(harness)
    for _ in range(3):
        harness.advance(LINGER_IDLE_S + 1.0)
        assert [client.lost] == [False]
    harness.advance(LINGER_IDLE_S + 1.0)
    assert client.lost


def test_a_client_that_goes_before_the_rest_is_no_failure(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    client.send_eof()
    assert client.lost
    assert requests(harness) == 1
    assert {kind: n for kind, n in harness.service.counters.errors.items() if n} == {}


def test_the_keep_alive_time_begins_behind_the_rest(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    harness.advance(4.0)
    client.send(b"abc")
    harness.advance(Timeouts().keepalive - 1.0)
    assert [client.lost] == [False]
    harness.advance(2.0)
    assert client.lost


def test_a_client_that_does_not_read_its_answer_is_served_no_further(harness: Harness) -> None:
    client = harness.client()
    client.send(POST)
    client.full = True
    harness.worker.send(OK)
    client.send(b"abc" + GET)
    assert len(harness.network.wires) == 1
    client.unstall()
    harness.worker.send(OK)
    assert client.received() == OK + OK


def test_a_stop_ends_it(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    harness.service.drain()
    harness.loop.run()
    assert client.ended
    client.send(b"abc" + GET)
    assert len(harness.network.wires) == 1
    harness.advance(2.5)
    assert client.lost


def test_a_change_of_what_it_was_accepted_with_ends_it(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    harness.connections[0].retire()
    assert client.ended
    assert [client.lost] == [False]


def test_a_cut_ends_it_and_counts_nothing(harness: Harness) -> None:
    client, _ = answered_early(harness, POST)
    assert not harness.connections[0].cut()
    assert client.ended
    assert {kind: n for kind, n in harness.service.counters.errors.items() if n} == {}
