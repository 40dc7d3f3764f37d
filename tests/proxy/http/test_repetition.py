"""What comes again with the same bytes is read once, and is treated as it was the first time.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import re

import pytest
from tests.proxy.conftest import Harness

TIMES = 5
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /a?b HTTP/1.1\r\nHost: a\r\nCookie: c=d\r\n\r\n"
REQUEST_ID = re.compile(rb"X-Request-ID: (\w+)\r\n")

REQUESTS = [
    GET,
    GET.replace(b"GET", b"HEAD"),
    GET.replace(b"GET", b"DELETE"),
    GET.replace(b"GET", b"POST"),
    GET.replace(b"/a?b", b"http://a/a?b"),
    GET.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Cookie", b"Connection: keep-alive\r\nCookie"),
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n",
]
RESPONSES = [
    OK,
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
    OK + b"s",
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda data: data[:24].decode())
def test_the_same_request_reaches_the_worker_as_the_first_time(
    harness: Harness, request_: bytes
) -> None:
    harness.build(head=8192)
    client = harness.client()
    response = OK.removesuffix(b"ok") if request_.startswith(b"HEAD") else OK
    seen, answers, ids = set(), set(), set()
    for _ in range(TIMES):
        client.send(request_)
        received = harness.worker.received()
        ids.update(REQUEST_ID.findall(received))
        seen.add(REQUEST_ID.sub(b"", received))
        harness.worker.send(response)
        answers.add(client.received())
    assert len(seen) == len(answers) == 1
    assert len(ids) == TIMES
    assert sum(harness.service.counters.requests.values()) == TIMES
    client.reset()


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two pieces"])
@pytest.mark.parametrize("response", RESPONSES, ids=lambda data: data[:28].decode())
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_the_same_response_reaches_the_client_as_the_first_time(
    harness: Harness, method: bytes, response: bytes, *, together: bool
) -> None:
    if method == b"HEAD":
        response = (
            response[: response.rfind(b"\r\n\r\n") + 4]
            if b"chunked" not in response
            else (response[: response.find(b"\r\n\r\n") + 4])
        )
    answers, reused = set(), set()
    harness.build()
    client = harness.client()
    for turn in range(TIMES):
        connections = len(harness.network.wires)
        client.send(GET.replace(b"GET", method))
        if turn:
            reused.add(len(harness.network.wires) == connections)
        harness.worker.received()
        if together:
            harness.worker.send(response)
        else:
            harness.worker.send(response[:20])
            harness.worker.send(response[20:])
        answers.add(client.received())
    assert len(answers) == len(reused) == 1
    assert answers.pop()
    status = int(response.rpartition(b"HTTP/1.")[2][2:5])
    counted = {
        code: count for (_, code, _), count in harness.service.counters.requests.items() if count
    }
    assert counted == {status: TIMES}
    client.reset()


def test_a_response_that_begins_as_the_one_before_has_its_own_body(harness: Harness) -> None:
    client = harness.client()
    for body in (b"aa", b"bb", b"cc"):
        client.send(GET)
        harness.worker.send(OK.replace(b"ok", body))
        assert client.received().endswith(b"\r\n\r\n" + body)
    for length in (b"20", b"2\r\nX: y", b"2 "):
        client.send(GET)
        rest = b"x" * int(length.split()[0])
        harness.worker.send(OK.replace(b"2\r", length + b"\r").replace(b"ok", rest))
        assert client.received().endswith(b"\r\n\r\n" + rest)
    client.reset()


def test_the_last_request_that_a_client_may_send_is_answered_with_close(harness: Harness) -> None:
    harness.build(requests=4)
    client = harness.client()
    for turn in range(4):
        client.send(GET)
        harness.worker.send(OK)
        assert (b"Connection: close" in client.received()) == (turn == 3)


def test_a_repeated_request_may_come_in_pieces_and_be_pipelined(harness: Harness) -> None:
    client = harness.client()
    for pieces in ([GET], [GET], [GET], [GET[:20], GET[20:]], [GET + GET], [GET, GET], [GET]):
        for piece in pieces:
            client.send(piece)
        for _ in range(b"".join(pieces).count(GET)):
            assert harness.worker.received().count(b" HTTP/1.1\r\n") == 1
            harness.worker.send(OK)
            assert client.received().endswith(b"ok")
    client.reset()


def test_a_repeated_request_is_judged_by_new_limits(harness: Harness) -> None:
    client = harness.client()
    for _ in range(TIMES):
        client.send(GET)
        harness.worker.send(OK)
    service = harness.service
    limits = service.config.limits.model_copy(update={"target": 3})
    service.configure(service.config.model_copy(update={"limits": limits}))
    client.received()
    client.send(GET)
    assert client.received().startswith(b"HTTP/1.1 414 ")
    client.reset()
