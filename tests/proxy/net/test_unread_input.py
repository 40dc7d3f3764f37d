"""A connection with bytes that nobody has read is known as such, and nothing is read of them."""

import socket

from penstock_proxy.net.unread_input import has_unread, is_silent


def test_bytes_are_seen_and_left_where_they_are() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not has_unread(ours)
        theirs.sendall(b"ab")
        assert has_unread(ours)
        assert ours.recv(10) == b"ab"
        theirs.close()
        assert not has_unread(ours)
    assert not has_unread(ours), "nor is there anything in one that is closed"
    assert not has_unread(None)


def test_a_peer_is_silent_as_long_as_there_is_neither_a_byte_nor_its_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_silent(ours)
        theirs.sendall(b"a")
        assert not is_silent(ours)
        assert ours.recv(10) == b"a"
        assert is_silent(ours)
        theirs.shutdown(socket.SHUT_WR)
        assert not is_silent(ours)
    assert not is_silent(ours)
