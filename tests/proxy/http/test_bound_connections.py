"""A connection that was authenticated as a whole carries the requests of one client only.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.config import Retries
from penstock_proxy.errors import MAX_CONNECTIONS
from penstock_proxy.net.tcp_info import CLOSED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
LARGE = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000
AUTH = GET[:-2] + b"Authorization: %b\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHALLENGE = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: NTLM\r\n\r\n"


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def ask(harness: Harness, client: Wire, request: bytes, answer: bytes = OK) -> Wire:
    """Send one request; returns the connection that has it, when it is answered."""
    for wire in harness.network.wires:
        wire.received()
    client.send(request)
    (wire,) = [wire for wire in harness.network.wires if wire.received()]
    wire.send(answer)
    assert status(client.received()) == status(answer)
    return wire


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET, CHALLENGE),
        (GET, CHALLENGE.replace(b"NTLM", b'Basic realm="a", negotiate')),
        (GET, CHALLENGE.replace(b"NTLM\r\n", b"Basic\r\nwww-authenticate: Negotiate abc==\r\n")),
        (GET, CHALLENGE.replace(b"WWW-", b"Proxy-").replace(b"401", b"407")),
        (GET, CHALLENGE.replace(b"401 Unauthorized", b"200 OK")),
        (AUTH % b"NTLM TlRMTVNT", OK),
        (AUTH % b"negotiate YIIJ", OK),
        (AUTH % b"NEGOTIATE YIIJ", CHALLENGE.replace(b"NTLM", b"Basic")),
        (GET[:-2] + b"Proxy-Authorization: Kerberos x\r\n\r\n", OK),
    ],
)
def test_from_the_first_sign_a_connection_belongs_to_its_client(
    harness: Harness, request_: bytes, answer: bytes
) -> None:
    client, stranger = harness.client(), harness.client()
    own = ask(harness, client, request_, answer)
    shared = ask(harness, stranger, GET)
    assert shared is not own
    for request in (GET, POST, LARGE, AUTH % b"NTLM x", GET):
        assert ask(harness, client, request) is own
        assert ask(harness, stranger, GET) is shared
    assert len(harness.network.wires) == 2


@pytest.mark.parametrize("scheme", [b"Basic x", b"Bearer NTLM", b"Digest a=b, ntlm=c"])
def test_other_schemes_share_connections(harness: Harness, scheme: bytes) -> None:
    first = ask(harness, harness.client(), AUTH % scheme)
    assert ask(harness, harness.client(), GET) is first
    assert len(harness.network.wires) == 1


def test_a_connection_of_the_pool_may_become_a_clients_own(harness: Harness) -> None:
    shared = ask(harness, harness.client(), GET)
    client = harness.client()
    assert ask(harness, client, AUTH % b"Negotiate x") is shared
    assert ask(harness, harness.client(), GET) is not shared
    assert ask(harness, client, GET) is shared


def test_requests_that_were_sent_ahead_go_over_the_same_connection(harness: Harness) -> None:
    client = harness.client()
    client.send(GET + GET + POST)
    for _ in range(3):
        harness.worker.send(CHALLENGE)
    assert len(harness.network.wires) == 1
    assert client.received().count(b" 401 ") == 3


def test_a_client_stays_with_its_worker_whatever_the_policy_says(harness: Harness) -> None:
    harness.build(workers=3)
    client, other = harness.client(), harness.client()
    own = ask(harness, client, AUTH % b"NTLM x")
    ports = []
    for _ in range(6):
        assert ask(harness, client, GET) is own
        ask(harness, other, GET)
        ports.append(harness.network.dialed[-1])
    assert set(ports) == {1, 2, 3}
    assert harness.network.dialed[0] == 1


def test_the_end_of_the_client_ends_its_connection(harness: Harness) -> None:
    for last in (GET[:-2] + b"Connection: close\r\n\r\n", b"", b"bad\r\n\r\n"):
        harness.build()
        client = harness.client()
        own = ask(harness, client, GET, CHALLENGE)
        if last.startswith(b"GET"):
            ask(harness, client, last)
        elif last:
            client.send(last)
        else:
            client.reset()
        harness.loop.run()
        assert own.lost
        assert harness.service.counters.upstreams == 0
        client.reset()


@pytest.mark.parametrize("request_", [GET, POST])
@pytest.mark.parametrize("ends", ["eof", "bytes", "unseen"])
def test_when_the_worker_ends_it_the_client_is_given_another_one(
    harness: Harness, request_: bytes, ends: str
) -> None:
    client, other = harness.client(), harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    if ends == "eof":
        own.send_eof()
    elif ends == "bytes":
        own.send(OK)
    else:
        own.arrive(OK)
    second = ask(harness, client, request_, OK)
    assert second is not own
    # Nobody was authenticated on that one.
    assert ask(harness, other, GET) is second
    assert harness.service.counters.retries == 0


def test_a_request_that_is_lost_with_it_is_sent_again_on_a_new_connection(
    harness: Harness,
) -> None:
    client, other = harness.client(), harness.client()
    ask(harness, other, GET)
    own = ask(harness, client, AUTH % b"NTLM x")
    idle = ask(harness, other, GET)
    client.send(GET)
    own.send_eof()
    assert idle.received() == b"", "it was not sent over one that may have ended as well"
    harness.worker.send(OK)
    assert client.received() == OK
    assert len(harness.network.wires) == 3


def test_a_post_that_may_have_been_read_is_not_sent_again(harness: Harness) -> None:
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    client.send(POST)
    own.send_eof()
    assert status(client.received()) == 502
    assert len(harness.network.wires) == 1
    ask(harness, client, POST)


@pytest.mark.parametrize(("request_", "is_same"), [(GET, True), (POST, False), (LARGE, False)])
def test_what_must_not_be_sent_twice_goes_over_it_only_while_that_is_safe(
    harness: Harness, request_: bytes, *, is_same: bool
) -> None:
    client = harness.client()
    keeps = CHALLENGE.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n")
    own = ask(harness, client, GET, keeps)
    harness.now += 4.5
    assert (ask(harness, client, request_) is own) is is_same
    assert own.lost is not is_same


def test_the_workers_keep_alive_time_holds(harness: Harness) -> None:
    client = harness.client()
    keeps = CHALLENGE.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n")
    own = ask(harness, client, GET, keeps)
    harness.advance(4.5)
    assert [own.lost] == [False]
    harness.advance(1.0)
    assert own.lost
    assert ask(harness, client, GET, keeps) is not own
    harness.now += 5.5
    assert len(harness.network.wires) == 2
    ask(harness, client, GET)
    assert len(harness.network.wires) == 3


def test_the_kernel_is_asked_before_a_post(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    monkeypatch.setattr("penstock_proxy.net.tcp_info.acknowledged", lambda _: CLOSED)
    assert ask(harness, client, POST) is not own


@pytest.mark.parametrize("leaves", ["drain", "leave", "fall", "hold"])
def test_a_worker_that_leaves_the_rotation_loses_it(harness: Harness, leaves: str) -> None:
    harness.build(workers=2)
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    pool = harness.service.pool
    if leaves == "fall":
        for _ in range(3):
            pool.checked(pool.members[0], ok=False, now=harness.now, reason="")
    elif leaves == "hold":
        pool.hold(0, "")
    else:
        getattr(pool, leaves)(0)
    harness.loop.run()
    assert own.lost
    ask(harness, client, GET, CHALLENGE)
    assert harness.network.dialed == [1, 2]


def test_a_request_in_flight_at_a_worker_that_drains_is_finished(harness: Harness) -> None:
    harness.build(workers=2)
    client = harness.client()
    client.send(GET)
    own = harness.worker
    harness.service.pool.drain(0)
    own.send(CHALLENGE)
    assert status(client.received()) == 401
    assert own.lost
    assert harness.service.pool.members[0].active == 0
    ask(harness, client, GET)
    assert harness.network.dialed == [1, 2]


def test_an_authentication_goes_on_in_panic_mode(harness: Harness) -> None:
    pool = harness.service.pool
    for _ in range(3):
        pool.checked(pool.members[0], ok=False, now=harness.now, reason="")
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    assert ask(harness, client, AUTH % b"NTLM x") is own


def test_a_worker_that_is_removed_leaves_nothing_behind(harness: Harness) -> None:
    harness.build(workers=2)
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    harness.service.remove_member(0)
    harness.loop.run()
    assert own.lost
    ask(harness, client, GET)
    assert harness.network.dialed == [1, 2]


def test_it_waits_for_its_worker_when_that_has_as_many_as_it_may_have(harness: Harness) -> None:
    harness.build(workers=2, queue=5.0, per_worker=1)
    client, other = harness.client(), harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    other.send(GET)
    third = harness.client()
    third.send(GET)
    assert harness.network.dialed == [1, 2, 1]
    client.send(GET)
    assert own.received() == b""
    assert len(harness.service.queue) == 1
    # The other worker is free: that is no reason to leave.
    harness.network.wires[1].send(OK)
    assert own.received() == b""
    assert len(harness.service.queue) == 1
    harness.network.wires[2].send(OK)
    assert own.received().startswith(b"GET / ")
    pool = harness.service.pool
    assert [member.is_full for member in pool.members] == [True, False]
    assert pool.available == 1
    own.send(OK)
    assert status(client.received()) == 200
    assert (pool.available, pool.members[0].active) == (2, 0)


def test_it_is_not_ended_for_descriptors_while_its_client_is_there(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    shared = ask(harness, other, GET)
    assert harness.service.connections.end_oldest(10) == 1
    harness.loop.run()
    assert (own.lost, shared.lost) == (False, True)
    (asking, _) = harness.connections
    assert asking.end_idle(MAX_CONNECTIONS)
    harness.loop.run()
    assert own.lost


def test_a_drain_of_the_proxy_ends_it(harness: Harness) -> None:
    idle, busy = harness.client(), harness.client()
    own = ask(harness, idle, GET, CHALLENGE)
    busy.send(GET)
    harness.service.drain()
    harness.loop.run()
    assert own.lost
    harness.worker.send(CHALLENGE)
    assert b"Connection: close\r\n" in busy.received()
    assert harness.worker.lost


def test_a_client_that_is_retired_takes_it_along(harness: Harness) -> None:
    client = harness.client()
    own = ask(harness, client, GET, CHALLENGE)
    harness.connections[0].retire()
    harness.loop.run()
    assert client.lost
    assert own.lost


def test_an_answer_that_is_discarded_binds_nobody(harness: Harness) -> None:
    harness.build(workers=2, retries=Retries(on=("503",)))
    client, other = harness.client(), harness.client()
    client.send(GET)
    harness.worker.send(CHALLENGE.replace(b"401 Unauthorized", b"503 No"))
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert client.received() == OK
    ask(harness, other, GET)
    assert ask(harness, other, GET) is harness.network.wires[1]


def test_a_proxy_header_does_not_keep_a_client_from_its_connection(harness: Harness) -> None:
    client = harness.client()
    (asking,) = harness.connections
    asking.proxy_header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    first = ask(harness, client, GET)
    second = ask(harness, client, GET, CHALLENGE)
    assert first is not second
    assert ask(harness, client, AUTH % b"NTLM x") is second
    assert ask(harness, client, GET) is second


# -- answered before the body has come

TYPE_1 = b"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: NTLM TlRMTVNT\r\n%b\r\n\r\n"
BODIES = {
    "small": (b"Content-Length: 5", b"abcde", b"abcde"),
    "large": (b"Content-Length: 300000", b"x" * 300_000, b"x" * 300_000),
    "chunks": (
        b"Transfer-Encoding: chunked",
        b"5\r\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde\r\n0\r\n\r\n",
    ),
}
CHALLENGES = [CHALLENGE, CHALLENGE.replace(b"Length: 0", b"Length: 2") + b"no"]
CHALLENGES += [CHALLENGE.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")]
CHALLENGES[-1] += b"2\r\nno\r\n0\r\n\r\n"


def challenged(harness: Harness, body: str, challenge: bytes = CHALLENGE) -> tuple[Wire, Wire]:
    """The client, whose request was answered before its body, and the worker's connection."""
    client = harness.client()
    client.send(TYPE_1 % BODIES[body][0])
    own = harness.worker
    own.received()
    own.send(challenge)
    head = client.received()
    assert status(head) == 401
    assert b"Connection: close" not in head
    return client, own


@pytest.mark.parametrize("challenge", CHALLENGES)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("with_next", [False, True])
def test_the_worker_gets_the_rest_of_the_body_and_the_next_request(
    harness: Harness, body: str, challenge: bytes, *, with_next: bool
) -> None:
    client, own = challenged(harness, body, challenge)
    _, sent, expected = BODIES[body]
    client.send(sent[:3])
    client.send(sent[3:] + (GET if with_next else b""))
    if not with_next:
        assert b"".join(chunks_or_bytes(own.received())) == b"".join(chunks_or_bytes(expected))
        client.send(GET)
        assert own.received().startswith(b"GET / ")
    else:
        assert b"GET / HTTP/1.1" in own.received()
    own.send(OK)
    assert status(client.received()) == 200
    assert len(harness.network.wires) == 1
    assert sum(harness.service.counters.requests.values()) == 2


def chunks_or_bytes(data: bytes) -> list[bytes]:
    """The payload, however it was divided into chunks."""
    if not data.endswith(b"0\r\n\r\n"):
        return [data]
    return data.split(b"\r\n")[1::2]


@pytest.mark.parametrize("how", ["ends", "resets", "goes on"])
def test_a_worker_that_leaves_meanwhile_costs_its_client_nothing_but_the_connection(
    harness: Harness, how: str
) -> None:
    client, own = challenged(harness, "small")
    client.send(b"abc")
    if how == "ends":
        own.send_eof()
    elif how == "resets":
        own.reset()
    else:
        own.send(b"HTTP/1.1 200 OK\r\n")
    assert own.lost
    client.send(b"de" + GET)
    assert harness.worker is not own
    harness.worker.send(OK)
    assert status(client.received()) == 200
    assert not any(harness.service.counters.errors.values())


def test_a_rest_that_never_comes_ends_both(harness: Harness) -> None:
    client, own = challenged(harness, "small")
    harness.advance(harness.service.timeouts.body + 1.0)
    assert own.lost
    assert client.ended
    assert not harness.service.counters.broken_off


def test_a_client_that_leaves_meanwhile_has_had_its_answer(harness: Harness) -> None:
    client, own = challenged(harness, "small")
    client.reset()
    assert own.lost
    assert not any(harness.service.counters.errors.values())
    assert sum(harness.service.counters.requests.values()) == 1


def test_a_malformed_rest_ends_both(harness: Harness) -> None:
    client, own = challenged(harness, "chunks")
    client.send(b"zz\r\n")
    assert own.lost
    assert client.ended
    assert client.received() == b""


def test_a_worker_that_does_not_keep_its_connection_has_the_close_said(harness: Harness) -> None:
    client = harness.client()
    client.send(TYPE_1 % b"Content-Length: 300000")
    harness.worker.send(CHALLENGE.replace(b"NTLM", b"NTLM\r\nConnection: close"))
    assert b"Connection: close" in client.received()
    assert client.ended
