"""No trick of request smuggling that is known gets past the front, however its bytes arrive.

What is refused is answered once, reaches no worker whole, and its connection ends: nothing
behind it is ever read as a request.
"""

import h11
import pytest
from tests.proxy.conftest import House
from tests.proxy.tricks.requests import CHUNKS, EVIL, HEADS, REQUESTS, Trick

GET = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answers(data: bytes, *methods: bytes) -> list[int]:
    """The statuses in what a client got, read by another's parser to the very end."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    statuses = []
    for method in methods:
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                statuses.append(event.status_code)
            else:
                assert isinstance(event, h11.Data)
        if client.our_state is h11.DONE and client.their_state is h11.DONE:
            client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return statuses


def is_refused(house: House, trick: Trick, pieces: list[bytes]) -> None:
    client = house.client()
    for piece in pieces:
        client.send(piece)
    assert answers(client.taken(), b"GET") == [trick.status]
    assert client.ended
    # Nothing that comes behind is a request any more.
    client.send(EVIL)
    assert client.taken() == b""
    house.pass_time(3.0)
    assert client.lost


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("trick", HEADS.values(), ids=HEADS)
def test_a_head_of_two_readings_reaches_no_worker(
    house: House, trick: Trick, *, bytewise: bool
) -> None:
    is_refused(house, trick, split(trick.data) if bytewise else [trick.data])
    assert house.network.dialed == []


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("trick", CHUNKS.values(), ids=CHUNKS)
def test_a_body_of_two_readings_looks_cut_to_the_worker(
    house: House, trick: Trick, *, bytewise: bool
) -> None:
    is_refused(house, trick, split(trick.data) if bytewise else [trick.data])
    assert len(house.network.wires) == 1
    assert house.worker.lost
    if not house.worker.written:
        return  # refused before the worker's connection stood
    worker = h11.Connection(h11.SERVER)
    worker.receive_data(bytes(house.worker.written))
    worker.receive_data(b"")
    assert isinstance(worker.next_event(), h11.Request)
    with pytest.raises(h11.RemoteProtocolError, match="incomplete"):
        list(iter(worker.next_event, None))


@pytest.mark.parametrize("trick", REQUESTS.values(), ids=REQUESTS)
def test_behind_a_good_request_it_is_refused_and_the_good_one_answered(
    house: House, trick: Trick
) -> None:
    client = house.client()
    client.send(GET + trick.data)
    assert house.worker.taken().startswith(b"GET /good HTTP/1.1\r\n")
    house.worker.send(OK)
    assert answers(client.taken(), b"GET", b"GET") == [200, trick.status]
    assert client.ended
    assert b"evil HTTP" not in b"".join(bytes(wire.written) for wire in house.network.wires)


def test_a_refused_head_gets_no_body(house: House) -> None:
    client = house.client()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n")
    assert answers(client.taken(), b"HEAD") == [400]


def test_every_trick_says_where_it_was_seen() -> None:
    assert all(trick.source for trick in REQUESTS.values())
    assert len(REQUESTS) > 200
