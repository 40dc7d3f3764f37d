"""All of HTTP that we name gets through as it was meant, on real sockets, and in exact turns.

The client and, where the demo application is too well-behaved, the worker are raw sockets
here: what is compared is what was on the wire.
"""

import re
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.cluster import Cluster
    from tests.live.conftest import Penstock, Worker
    from tests.live.wire import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(
    target: str = "/", *fields: str, method: str = "GET", minor: int = 1, body: bytes = b""
) -> bytes:
    lines = [f"{method} {target} HTTP/1.{minor}", "Host: example.org", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def always(reply: bytes, seen: list[bytes] | None = None) -> "Callable[[Wire], None]":
    """A worker that answers every head with the same bytes, and notes what it saw."""

    def answer(wire: "Wire") -> None:
        while True:
            head = wire.head()
            if seen is not None:
                seen.append(head)
            wire.send(reply)

    return answer


def fields_of(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:-2]
    names = [line.partition(":")[0].lower() for line in lines]
    assert len(set(names)) == len(names), head
    return {name: line.partition(":")[2].strip() for name, line in zip(names, lines, strict=True)}


def who(body: bytes) -> str:
    match = re.match(rb"hello from (\w+/\d) ", body)
    assert match, body
    return match[1].decode()


# -- turns


def test_turns_are_exact_over_one_connection(demo: "Cluster") -> None:
    wire = demo.connect()
    turns = Counter(who(wire.ask(request()).body) for _ in range(40))
    assert turns == {"web/0": 20, "web/1": 20}


def test_turns_are_exact_over_many_connections_at_once(demo: "Cluster") -> None:
    turns: Counter[str] = Counter()

    def client() -> None:
        for _ in range(5):
            wire = demo.connect()
            mine = [who(wire.ask(request()).body) for _ in range(5)]
            turns.update(mine)
            wire.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == {"web/0": 100, "web/1": 100}


def test_turns_are_exact_by_weight(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[list[bytes]] = [[], [], []]
    workers = [origin(always(OK, mine)) for mine in seen]
    weights = ("", " weight=3", " weight=2")
    run = penstock(upstreams=[w.address + text for w, text in zip(workers, weights, strict=True)])
    wire = run.connect()
    for _ in range(60):
        assert wire.ask(request()).status == 200
    assert [len(mine) for mine in seen] == [10, 30, 20]


def test_every_policy_serves(penstock: "Penstock", origin: "Worker") -> None:
    def named(name: bytes) -> "Callable[[Wire], None]":
        return always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

    upstreams = [origin(named(b"0")).address, origin(named(b"1")).address]
    policies = ("round_robin", "least_connections", "power_of_two", "hash", "random")
    run = penstock(
        services={
            policy: {"balance": policy, "upstreams": upstreams, "access_log": "off"}
            for policy in policies
        }
    )
    turns = {}
    for policy in policies:
        wire = run.connect(policy)
        turns[policy] = Counter(wire.ask(request()).body for _ in range(100))
        assert turns[policy].total() == 100
    assert turns["round_robin"] == turns["least_connections"] == {b"0": 50, b"1": 50}
    # One client, one worker.
    assert len(turns.pop("hash")) == 1
    assert all(len(each) == 2 for each in turns.values())


# -- versions and connections


def test_http_1_0_is_answered_and_closed(demo: "Cluster") -> None:
    wire = demo.connect()
    wire.send(request(minor=0))
    answer = wire.answer()
    assert (answer.status, answer["Connection"]) == (200, "close")
    assert wire.is_ended()


def test_http_1_0_keeps_a_connection_that_asks_for_it(demo: "Cluster") -> None:
    wire = demo.connect()
    for _ in range(3):
        answer = wire.ask(request("/", "Connection: keep-alive", minor=0))
        assert (answer.status, answer["Connection"]) == (200, "keep-alive")
        assert answer["Transfer-Encoding"] is None


def test_a_client_that_says_close_is_closed(demo: "Cluster") -> None:
    wire = demo.connect()
    answer = wire.ask(request("/", "Connection: close"))
    assert (answer.status, answer["Connection"]) == (200, "close")
    assert wire.is_ended()


def test_pipelined_requests_are_answered_in_their_order(demo: "Cluster") -> None:
    wire = demo.connect()
    chunked = b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    wire.send(
        request("/sleep?s=0.05"),
        request("/echo", "Content-Length: 5", method="POST", body=b"first"),
        request("/echo", "Transfer-Encoding: chunked", method="PUT", body=chunked),
        request("/healthz", method="HEAD"),
        request("/nothing-here"),
        request("/echo", "Content-Length: 4", method="POST", body=b"last"),
    )
    assert wire.answer().body.startswith(b"slept")
    assert wire.answer().body == b"first"
    assert wire.answer().body == b"onetwo"
    assert wire.answer("HEAD").status == 200
    assert wire.answer().status == 404
    assert wire.answer().body == b"last"


def test_a_long_pipeline_is_answered_to_its_end(demo: "Cluster") -> None:
    # More than the front holds: the rest waits in the kernel, and is not forgotten there.
    wire = demo.connect()
    body = b"x" * 3000
    one = request("/echo", "Content-Length: 3000", method="POST", body=body)
    sender = threading.Thread(target=wire.send, args=(one * 300,))
    sender.start()
    assert all(wire.answer().body == body for _ in range(300))
    sender.join()


def test_an_absolute_target_reaches_the_worker_as_its_path(demo: "Cluster") -> None:
    answer = demo.connect().ask(request("http://example.org/headers?a=b"))
    assert b'"target": "/headers?a=b"' in answer.body


# -- bodies


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
def test_a_body_of_known_length_is_the_same_both_ways(demo: "Cluster", size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    wire = demo.connect()
    head = request("/echo", f"Content-Length: {size}", method="POST")
    sender = threading.Thread(target=wire.send, args=(head, body[:size]))
    sender.start()
    answer = wire.answer()
    sender.join()
    assert answer["Content-Length"] == str(size)
    assert answer.body == body[:size]


def test_a_chunked_body_is_the_same_both_ways(demo: "Cluster") -> None:
    pieces = [bytes([n % 256]) * (n * 37 % 5000 + 1) for n in range(200)]
    wire = demo.connect()

    def send() -> None:
        wire.send(request("/echo", "Transfer-Encoding: chunked", method="POST"))
        for piece in pieces:
            wire.send(b"%X;ext=1\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"000\r\n\r\n")

    sender = threading.Thread(target=send)
    sender.start()
    answer = wire.answer()
    sender.join()
    assert answer["Transfer-Encoding"] == "chunked"
    assert answer.body == b"".join(pieces)


def test_an_answer_without_a_length_is_framed_for_who_asked(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def until_close(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.0 200 OK\r\nX-Old: yes\r\n\r\n", b"some", b"thing")

    run = penstock("--to", origin(until_close).address)
    wire = run.connect()
    answer = wire.ask(request())
    assert (answer.version, answer["Transfer-Encoding"]) == (b"HTTP/1.1", "chunked")
    assert answer.body == b"something"
    # It was framed anew, so the client's connection outlives the worker's.
    assert wire.ask(request()).body == b"something"
    wire = run.connect()
    answer = wire.ask(request("/", "Connection: keep-alive", minor=0))
    assert (answer["Transfer-Encoding"], answer["Connection"]) == (None, "close")
    assert answer.body == b"something"


def test_a_chunked_answer_is_framed_for_an_old_client(
    penstock: "Penstock", origin: "Worker"
) -> None:
    reply = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n"
    )
    wire = penstock("--to", origin(always(reply)).address).connect()
    answer = wire.ask(request(minor=0))
    assert (answer["Transfer-Encoding"], answer.body) == (None, b"something")


def test_answers_without_a_body_have_none_and_keep_the_connection(
    penstock: "Penstock", origin: "Worker"
) -> None:
    replies = {
        b"/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        b"/304": b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n',
        b"/head": b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n",
        b"/head-chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"/empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    }
    met = []

    def answer(wire: "Wire") -> None:
        met.append(wire)
        while True:
            wire.send(replies[wire.head().split(b" ")[1]])

    run = penstock("--to", origin(answer).address, health={"interval": "1h"})
    checks = len(met)
    wire = run.connect()
    for _ in range(2):
        assert wire.ask(request("/204")).status == 204
        assert wire.ask(request("/304"))["Content-Length"] == "500"
        assert wire.ask(request("/head", method="HEAD"), method="HEAD")["Content-Length"] == "700"
        assert wire.ask(request("/head-chunked", method="HEAD"), method="HEAD").status == 200
        assert wire.ask(request("/empty")).body == b""
    # Nor was the worker's connection lost on the way, but for the two who spoke of chunks:
    # such a one may send the last of them after all.
    assert len(met) - checks == 3


def test_a_client_that_waits_for_100_continue_gets_it_before_it_sends(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        while True:
            assert fields_of(wire.head())["expect"] == "100-continue"
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert wire.exactly(4) == b"body"
            wire.send(OK)

    wire = penstock("--to", origin(answer).address).connect()
    for _ in range(2):
        wire.send(request("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
        assert wire.answer().status == 100
        assert wire.ask(b"body").body == b"ok"


def test_a_worker_may_answer_instead_of_100_continue(
    penstock: "Penstock", origin: "Worker"
) -> None:
    reply = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n"
    wire = penstock("--to", origin(always(reply)).address).connect()
    wire.send(request("/", "Content-Length: 9999999", "Expect: 100-continue", method="POST"))
    answer = wire.answer()
    # The client may send its body or not: what comes next on this connection is anybody's guess.
    assert (answer.status, answer["Connection"]) == (413, "close")


def test_trailers_get_through_both_ways(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[tuple[bytes, bytes]] = []

    def answer(wire: "Wire") -> None:
        while True:
            wire.head()
            seen.append(wire.chunks())
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
            wire.send(b"2\r\nok\r\n0\r\nX-Sum: 42\r\nSet-Cookie: a=b\r\n\r\n")

    wire = penstock("--to", origin(answer).address).connect()
    body = b"2\r\nhi\r\n0\r\nX-Check: abc\r\nCookie: a=b\r\nX-Real-IP: 6.6.6.6\r\n\r\n"
    chunked = request("/", "Transfer-Encoding: chunked", "TE: trailers", method="POST", body=body)
    for _ in range(2):
        answered = wire.ask(chunked)
        # Whom a request is from has no place in a trailer.
        assert (answered.body, answered.trailers) == (b"ok", b"X-Sum: 42\r\n")
    assert seen == [(b"hi", b"X-Check: abc\r\n")] * 2


def test_an_interim_response_gets_through_to_who_knows_it(
    penstock: "Penstock", origin: "Worker"
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    wire = penstock("--to", origin(always(hints + hints + OK)).address).connect()
    wire.send(request())
    assert [wire.answer().status for _ in range(3)] == [103, 103, 200]
    assert wire.ask(request(minor=0)).status == 200


# -- what is added, removed and believed


def test_hop_by_hop_fields_end_here(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[bytes] = []
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Mine\r\nX-Mine: 1\r\n"
        b"Keep-Alive: timeout=5\r\nX-Kept: 1\r\n\r\nok"
    )
    wire = penstock("--to", origin(always(reply, seen)).address).connect()
    answer = wire.ask(
        request(
            "/", "Connection: X-Private, keep-alive", "X-Private: 1", "Keep-Alive: timeout=9",
            "Proxy-Authorization: Basic eDp5", "Proxy: http://evil", "TE: gzip", "X-Kept: 2",
        )
    )  # fmt: skip
    assert {name for name, _ in answer.fields} == {b"Content-Length", b"X-Kept"}
    assert set(fields_of(seen[0])) == {
        "host", "x-kept", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
        "x-forwarded-port", "x-request-id", "via",
    }  # fmt: skip


CLAIMS = (
    "X-Forwarded-For: 10.1.1.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: bank.example",
    "Forwarded: for=10.1.1.1", "X-Real-IP: 10.1.1.1", "X_Forwarded_For: 10.1.1.1",
    "X-Request-ID: chosen-by-client",
)  # fmt: skip


def test_a_stranger_is_not_believed(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address)
    run.connect().ask(request("/", *CLAIMS))
    fields = fields_of(seen[0])
    assert fields.pop("x-request-id") != "chosen-by-client"
    assert fields == {
        "host": "example.org",
        "via": "1.1 penstock",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-host": "example.org",
        "x-forwarded-port": str(run.address()[1]),
    }


def test_a_trusted_proxy_is_believed_and_continued(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address, trusted_proxies=["127.0.0.0/8"])
    run.connect().ask(request("/", *CLAIMS[:3], CLAIMS[-1]))
    assert fields_of(seen[0]) == {
        "host": "example.org",
        "via": "1.1 penstock",
        "x-forwarded-for": "10.1.1.1, 127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "bank.example",
        "x-forwarded-port": "443",
        "x-request-id": "chosen-by-client",
    }
    run.until(lambda: run.log, "a line of the log")
    assert run.log[0]["client"] == "10.1.1.1"


def test_clients_behind_a_trusted_proxy_are_told_apart_by_the_hash(
    penstock: "Penstock", origin: "Worker"
) -> None:
    """All of them come over one connection: their proxy says whose each request is."""
    got: dict[int, list[str]] = {0: [], 1: []}

    def answer(number: int, wire: "Wire") -> None:
        while head := wire.head():
            if b"penstock-health" not in head:
                got[number].append(fields_of(head)["x-forwarded-for"].partition(",")[0])
            wire.send(OK)

    workers = [origin(partial(answer, number)) for number in got]
    run = penstock(
        "--to", workers[0].address, "--to", workers[1].address,
        balance="hash", trusted_proxies=["127.0.0.1"],
    )  # fmt: skip
    wire = run.connect()
    clients = [f"203.0.113.{number}" for number in range(40)]
    for client in clients * 2:
        wire.ask(request("/", f"X-Forwarded-For: 6.6.6.6, {client}"))
    for seen in got.values():
        assert len(set(seen)) * 2 == len(seen) > 0
    assert {*got[0]} | {*got[1]} == {*clients}
    assert not {*got[0]} & {*got[1]}


def test_every_request_has_an_id_of_its_own_that_the_log_knows(
    penstock: "Penstock", origin: "Worker"
) -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address)
    for _ in range(3):
        wire = run.connect()
        for _ in range(3):
            wire.ask(request())
    ids = [fields_of(head)["x-request-id"] for head in seen]
    assert len(set(ids)) == 9
    run.until(lambda: len(run.log) == 9)
    assert [line["request_id"] for line in run.log] == ids


# -- other protocols


@pytest.mark.parametrize("name", ["web", "raw"])
async def test_websockets_echo_in_both_modes(demo: "Cluster", name: str) -> None:
    host, port = demo.address(name)
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.ws_connect(f"ws://{host}:{port}/ws", max_msg_size=0) as socket,
    ):
        for size in (0, 1, 125, 126, 70_000, 1_000_000):
            await socket.send_bytes(b"x" * size)
            assert await socket.receive_bytes() == b"x" * size
            await socket.send_str("ü" * (size // 2))
            assert await socket.receive_str() == "ü" * (size // 2)
        await socket.ping()
        await socket.close()
        assert socket.close_code == 1000


def test_an_upgrade_is_a_pipe_from_its_very_first_byte(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        fields = fields_of(wire.head())
        assert (fields["connection"], fields["upgrade"]) == ("Upgrade", "rot13/1")
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
        wire.send(b"Upgrade: rot13/1\r\n\r\nhello")
        assert wire.rest() == b"early" + b"late" * 50_000
        wire.send(b"good", b"bye" * 50_000)

    wire = penstock("--to", origin(answer).address).connect()
    # What is sent ahead belongs to the new protocol.
    wire.send(request("/", "Connection: Upgrade", "Upgrade: rot13/1"), b"early")
    head = wire.head()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert fields_of(head) == {"connection": "Upgrade", "upgrade": "rot13/1"}
    assert wire.exactly(5) == b"hello"
    wire.send(b"late" * 50_000)
    wire.finish()
    assert wire.rest() == b"good" + b"bye" * 50_000


def test_an_upgrade_that_is_declined_is_an_answer_like_any_other(demo: "Cluster") -> None:
    wire = demo.connect()
    assert wire.ask(request("/", "Connection: Upgrade", "Upgrade: rot13/1")).status == 200
    assert wire.ask(request()).status == 200
