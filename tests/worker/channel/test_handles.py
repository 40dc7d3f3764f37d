"""Every kind of socket can be sent over a channel, both ways, one at a time and in order.

Covers `channel/channel`, `channel/framing` and `channel/send_queue`.
"""

import asyncio
import fcntl
import os
import select
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.worker.peers import (
    DEADLINE_S,
    ENVELOPE,
    Peer,
    accepted,
    bound_udp,
    line,
    listening,
    nothing_comes,
    read_line,
    rights,
    tcp_pair,
    unix_pair,
)

from penstock_worker.channel.channel import MAX_LINE
from penstock_worker.channel.framing import ACK, HANDLE, NACK


def both_ways(two: tuple[Peer, Peer], handle: socket.socket) -> tuple[socket.socket, ...]:
    left, right = two
    assert left.channel.send({"to": "right"}, handle, left.notes(1))
    assert right.channel.send({"to": "left"}, handle, right.notes(2))
    left.until(lambda: left.outcomes == [(1, True)] and right.outcomes == [(2, True)])
    assert (left.messages, right.messages) == ([{"to": "left"}], [{"to": "right"}])
    handles = (*left.handles, *right.handles)
    for found in handles:
        assert not found.get_inheritable()
        assert not found.getblocking()
        assert fcntl.fcntl(found, fcntl.F_GETFL) & os.O_NONBLOCK
        assert (found.family, found.type) == (handle.family, handle.type)
    assert len(handles) == 2
    return handles


def test_a_listening_tcp_socket_goes_both_ways(two: tuple[Peer, Peer], stack: ExitStack) -> None:
    listener = listening(stack)
    for handle in both_ways(two, listener):
        with socket.create_connection(listener.getsockname()) as client:
            with accepted(handle) as served:
                served.send(b"hello")
            assert client.recv(9) == b"hello"


def test_a_listening_unix_socket_goes_both_ways(
    two: tuple[Peer, Peer], stack: ExitStack, tmp_path: Path
) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    with tempfile.TemporaryDirectory(prefix="ch") as short:
        listener.bind(f"{short}/s")
        listener.listen()
        for handle in both_ways(two, listener):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{short}/s")
                with accepted(handle) as served:
                    served.send(b"hello")
                assert client.recv(9) == b"hello"


def test_a_connected_tcp_socket_goes_both_ways(two: tuple[Peer, Peer], stack: ExitStack) -> None:
    served, client = tcp_pair(stack)
    handles = both_ways(two, served)
    served.close()
    for handle in handles:
        handle.send(b"hello")
        assert client.recv(5) == b"hello"


def test_a_udp_socket_goes_both_ways(two: tuple[Peer, Peer], stack: ExitStack) -> None:
    bound, client = bound_udp(stack), bound_udp(stack)
    client.settimeout(DEADLINE_S)
    for handle in both_ways(two, bound):
        handle.sendto(b"hello", client.getsockname())
        assert client.recvfrom(9) == (b"hello", bound.getsockname())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_connected_unix_socket_goes_both_ways(
    two: tuple[Peer, Peer], stack: ExitStack, kind: int
) -> None:
    mine, other = unix_pair(stack, kind)
    for handle in both_ways(two, mine):
        handle.send(b"hello")
        assert other.recv(5) == b"hello"


def test_the_envelope_names_the_kind_of_the_socket(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    six = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    expected: list[tuple[socket.socket, dict[str, str]]] = [
        (listening(stack), {"type": "net.Server"}),
        (tcp_pair(stack)[0], {"type": "net.Socket"}),
        (unix_pair(stack)[0], {"type": "net.Socket"}),
        (unix_pair(stack, socket.SOCK_SEQPACKET)[0], {"type": "net.Socket"}),
        (bound_udp(stack), {"type": "dgram.Socket", "dgramType": "udp4"}),
        (six, {"type": "dgram.Socket", "dgramType": "udp6"}),
    ]
    for number, (handle, kind) in enumerate(expected):
        peer.channel.send(number, handle)
        assert read_line(peer, theirs) == ({"cmd": HANDLE, **kind, "msg": number}, 1)
        theirs.send(line({"cmd": ACK}))


def test_a_handle_that_is_no_supported_socket_is_a_type_error_and_not_sent(
    ends: tuple[Peer, socket.socket], stack: ExitStack, tmp_path: Path
) -> None:
    peer, theirs = ends
    closed = socket.socket()
    closed.close()
    datagrams = unix_pair(stack, socket.SOCK_DGRAM)[0]
    netlink = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    file = stack.enter_context((tmp_path / "file").open("w"))
    for handle in (closed, datagrams, netlink, file, 0, "socket"):
        with pytest.raises(TypeError):
            peer.channel.send("take it", handle)  # type: ignore[arg-type]
    nothing_comes(peer, theirs)


@pytest.mark.parametrize("command", [HANDLE, ACK, NACK])
def test_a_message_with_a_command_of_the_channel_itself_is_refused(
    ends: tuple[Peer, socket.socket], command: str
) -> None:
    with pytest.raises(ValueError, match="channel's own"):
        ends[0].channel.send({"cmd": command})


def test_the_senders_own_socket_stays_open_and_may_be_closed_at_once(
    two: tuple[Peer, Peer], stack: ExitStack
) -> None:
    left, right = two
    for number in range(5):
        served, client = tcp_pair(stack)
        left.channel.send(number, served, left.notes(number))
        assert served.fileno() >= 0
        served.close()
        right.until(lambda: len(right.handles) == number + 1)  # noqa: B023 -- called before the next
        right.handles[-1].send(b"hello")
        assert client.recv(5) == b"hello"
    left.until(lambda: left.outcomes == [(number, True) for number in range(5)])


def test_two_sides_that_send_many_handles_at_once_do_not_wait_for_each_other(
    two: tuple[Peer, Peer], stack: ExitStack
) -> None:
    sockets = [bound_udp(stack) for _ in range(60)]
    for number, handle in enumerate(sockets):
        for peer in two:
            peer.channel.send(["before", number])
            assert peer.channel.send(["with", number], handle, peer.notes(number))
    left, right = two
    left.until(lambda: len(left.outcomes) == len(right.outcomes) == 60)
    expected = [[word, number] for number in range(60) for word in ("before", "with")]
    names = [handle.getsockname() for handle in sockets]
    for peer in two:
        assert peer.outcomes == [(number, True) for number in range(60)]
        assert peer.messages == expected
        assert [handle.getsockname() for handle in peer.handles] == names, "to each its own line"


def test_nothing_follows_a_handle_before_it_is_acknowledged(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    one = bound_udp(stack)
    peer.channel.send("first", one, peer.notes(1))
    peer.channel.send("second")
    peer.channel.send("third", one, peer.notes(3))
    assert read_line(peer, theirs)[0]["msg"] == "first"
    # The acknowledgement of a received handle is sent before what waits.
    theirs.sendmsg([line(ENVELOPE)], rights(one.fileno()))
    peer.until(lambda: peer.messages == ["take it"])
    assert read_line(peer, theirs) == ({"cmd": ACK}, 0)
    nothing_comes(peer, theirs)
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.outcomes == [(1, True)])
    assert read_line(peer, theirs) == ("second", 0)
    assert read_line(peer, theirs)[0]["msg"] == "third"


def test_a_handle_that_the_peer_has_no_room_for_is_sent_again_and_then_taken(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("take it", tcp_pair(stack)[0], peer.notes(1))
    for _ in range(3):
        assert read_line(peer, theirs) == (ENVELOPE, 1)
        theirs.send(line({"cmd": NACK}))
    assert read_line(peer, theirs) == (ENVELOPE, 1)
    assert peer.outcomes == []
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.outcomes == [(1, True)])


def test_a_handle_that_is_never_taken_is_given_up_and_the_next_message_goes(
    ends: tuple[Peer, socket.socket], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    peer, theirs = ends
    peer.channel.send("take it", tcp_pair(stack)[0], peer.notes(1))
    peer.channel.send("the next")
    for _ in range(4):
        assert read_line(peer, theirs) == (ENVELOPE, 1)
        theirs.send(line({"cmd": NACK}))
    peer.until(lambda: peer.outcomes == [(1, False)])
    assert read_line(peer, theirs) == ("the next", 0)
    assert "given up" in caplog.text
    assert not peer.channel.closed


def test_an_envelope_whose_descriptor_was_lost_is_asked_for_again(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    theirs.send(line(ENVELOPE))
    assert read_line(peer, theirs) == ({"cmd": NACK}, 0)
    assert peer.messages == [], "it is not delivered without its handle"
    theirs.sendmsg([line(ENVELOPE)], rights(tcp_pair(stack)[0].fileno()))
    peer.until(lambda: peer.messages == ["take it"])
    assert read_line(peer, theirs) == ({"cmd": ACK}, 0)


def test_a_large_line_in_many_pieces_keeps_its_one_descriptor(
    two: tuple[Peer, Peer], stack: ExitStack
) -> None:
    left, right = two
    text = "x" * (MAX_LINE - 200)
    left.channel.send(text, tcp_pair(stack)[0], left.notes(1))
    left.channel.send(text, bound_udp(stack), left.notes(2))
    left.channel.send("small")
    left.until(lambda: len(right.messages) == 3)
    assert right.messages == [text, text, "small"]
    assert [handle.type for handle in right.handles] == [socket.SOCK_STREAM, socket.SOCK_DGRAM]
    assert left.outcomes == [(1, True), (2, True)]


def test_only_the_first_byte_of_a_line_carries_the_descriptor(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("x" * (MAX_LINE - 200), tcp_pair(stack)[0])
    received, came = 0, []
    while received < MAX_LINE - 200:
        peer.until(lambda: theirs in select.select([theirs], [], [], 0)[0])
        data, fds, _, _ = socket.recv_fds(theirs, 1 << 20, 4)
        came.append(len(fds))
        received += len(data)
        for fd in fds:
            os.close(fd)
    assert len(came) > 1, "the kernel did not take it whole"
    assert came == [1] + [0] * (len(came) - 1)


def test_an_envelope_that_comes_byte_by_byte_is_put_together(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    whole = line("before") + line(ENVELOPE)
    start = len(line("before"))
    for at, byte in enumerate(whole):
        fd = tcp_pair(stack)[0].fileno()
        theirs.sendmsg([bytes([byte])], rights(fd) if at == start else [])
        peer.loop.run_until_complete(asyncio.sleep(0))
    peer.until(lambda: peer.messages == ["before", "take it"])
    assert len(peer.handles) == 1
