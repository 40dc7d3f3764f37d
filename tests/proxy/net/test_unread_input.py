"""A connection with bytes that nobody has read is known as such, and nothing is read of them."""

import socket

from penstock_proxy.net.unread_input import has_unread


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
