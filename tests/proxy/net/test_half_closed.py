"""A peer that has left is told from one that has only ended its side, as soon as can be known."""

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from penstock_proxy.net import half_closed
from penstock_proxy.net.half_closed import has_left, unacknowledged


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def test_on_a_unix_socket_it_is_known_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        assert not has_left(ours)
        theirs.close()
        assert has_left(ours)
    assert not has_left(ours), "nothing is known of one that is closed here"
    assert not has_left(None)


def closes(theirs: socket.socket) -> None:
    # So long the kernel remembers a connection that its program has closed: a minute, if nobody
    # says otherwise.
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
    theirs.close()


def stays(theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(("leaves", "fails"), [(closes, True), (stays, False)])
async def test_a_tcp_peer_that_has_closed_is_found_by_probes_and_another_is_left_in_peace(
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    leaves: Callable[[socket.socket], None],
    *,
    fails: bool,
) -> None:
    monkeypatch.setattr(half_closed, "PROBE_S", 1)
    ours, theirs = pair
    leaves(theirs)
    assert ours.recv(1) == b""
    assert not has_left(ours)
    for _ in range(40 if fails else 25):
        await asyncio.sleep(0.1)
        if error := ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            break
    assert bool(error) == fails


def test_what_a_peer_has_not_acknowledged_is_counted() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert unacknowledged(ours) == 0
        ours.send(b"abc")
        assert unacknowledged(ours) > 0
        theirs.recv(10)
        assert unacknowledged(ours) == 0
    assert unacknowledged(ours) == unacknowledged(None) == 0
