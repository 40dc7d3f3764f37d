"""Descriptors cross a channel beside their lines, both ways, and none is ever left behind.

Real socket pairs, on asyncio and uvloop, with peers that break every rule of the wire; and a
real Node child, whose wire it is.
"""

import array
import asyncio
import errno
import fcntl
import json
import logging
import os
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from penstock_worker.channel import MAX_HANDLES, MAX_LINE, Channel, pair
from penstock_worker.wire import ACK, HANDLE, NACK

DEADLINE_S = 20.0
ENVELOPE = {"cmd": HANDLE, "type": "net.Socket", "msg": "take it"}


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Peer:
    """A channel whose callbacks take notes, and close what they are given when it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.messages: list[Any] = []
        self.handles: list[socket.socket] = []
        self.told: list[tuple[int, bool]] = []
        self.goodbyes = 0
        self.channel = Channel(loop, sock, self._heard, self._gone)

    def _heard(self, message: Any, handle: socket.socket | None) -> None:
        self.messages.append(message)
        if handle is not None:
            self.handles.append(handle)

    def _gone(self) -> None:
        self.goodbyes += 1

    def notes(self, number: int) -> Callable[[bool], None]:
        return lambda taken: self.told.append((number, taken))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = self.loop.time() + DEADLINE_S
        while not condition():
            assert self.loop.time() < deadline
            self.loop.run_until_complete(asyncio.sleep(0.001))

    def close(self) -> None:
        self.channel.close()
        for handle in self.handles:
            handle.close()
        self.handles.clear()


def descriptors() -> list[str]:
    """What is open: the targets, so that one that is left behind can be recognized."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue  # The one that lists.
    return sorted(found)


@pytest.fixture
def two(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Peer, Peer]]:
    before = descriptors()
    left, right = (Peer(loop, end) for end in pair())
    yield left, right
    left.close()
    right.close()
    assert descriptors() == before


@pytest.fixture
def ends(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Peer, socket.socket]]:
    """A channel and the bare end of its peer, which may break the rules."""
    before = descriptors()
    ours, theirs = pair()
    peer = Peer(loop, ours)
    yield peer, theirs
    peer.close()
    theirs.close()
    assert descriptors() == before


def listening(stack: ExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    listener = listening(stack)
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    served = stack.enter_context(listener.accept()[0])
    client.settimeout(DEADLINE_S)
    return served, client


def unix_pair(stack: ExitStack, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, ...]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    other.settimeout(DEADLINE_S)
    return stack.enter_context(one), stack.enter_context(other)


def bound_udp(stack: ExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("127.0.0.1", 0))
    return made


def accepted(handle: socket.socket) -> socket.socket:
    """What a listener that does not block has queued."""
    handle.settimeout(DEADLINE_S)
    return handle.accept()[0]


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def line(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def read_line(peer: Peer, sock: socket.socket) -> tuple[Any, int]:
    """The next line, and how many descriptors came with it; these are closed."""
    data, count = bytearray(), 0

    def came() -> bool:
        nonlocal count
        try:
            piece, fds, _, _ = socket.recv_fds(sock, 1, 4)
        except BlockingIOError:
            return False
        assert piece, "the end, and no line"
        data.extend(piece)
        count += len(fds)
        for fd in fds:
            os.close(fd)
        return piece == b"\n"

    while not came():
        if sock not in select.select([sock], [], [], 0)[0]:
            peer.until(lambda: sock in select.select([sock], [], [], 0)[0])
    return json.loads(data), count


def nothing_happens(peer: Peer) -> None:
    for _ in range(20):
        peer.loop.run_until_complete(asyncio.sleep(0))


def nothing_comes(peer: Peer, sock: socket.socket) -> None:
    """Nothing is sent, however often the loop turns."""
    nothing_happens(peer)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def both_ways(two: tuple[Peer, Peer], handle: socket.socket) -> tuple[socket.socket, ...]:
    left, right = two
    assert left.channel.send({"to": "right"}, handle, left.notes(1))
    assert right.channel.send({"to": "left"}, handle, right.notes(2))
    left.until(lambda: left.told == [(1, True)] and right.told == [(2, True)])
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
        with socket.create_connection(listener.getsockname()), accepted(handle) as served:
            served.send(b"hello")


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
                accepted(handle).close()


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


def test_the_envelope_says_of_which_kind_a_socket_is(
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


def test_what_cannot_travel_is_a_type_error_and_nothing_is_sent(
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
def test_nobody_can_say_what_the_channel_says_itself(
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
    left.until(lambda: left.told == [(number, True) for number in range(5)])


def test_two_sides_that_send_many_handles_at_once_do_not_wait_for_each_other(
    two: tuple[Peer, Peer], stack: ExitStack
) -> None:
    sockets = [bound_udp(stack) for _ in range(60)]
    for number, handle in enumerate(sockets):
        for peer in two:
            peer.channel.send(["before", number])
            assert peer.channel.send(["with", number], handle, peer.notes(number))
    left, right = two
    left.until(lambda: len(left.told) == len(right.told) == 60)
    expected = [[word, number] for number in range(60) for word in ("before", "with")]
    names = [handle.getsockname() for handle in sockets]
    for peer in two:
        assert peer.told == [(number, True) for number in range(60)]
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
    # Its own acknowledgement goes past what waits.
    theirs.sendmsg([line(ENVELOPE)], rights(one.fileno()))
    peer.until(lambda: peer.messages == ["take it"])
    assert read_line(peer, theirs) == ({"cmd": ACK}, 0)
    nothing_comes(peer, theirs)
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.told == [(1, True)])
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
    assert peer.told == []
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.told == [(1, True)])


def test_a_handle_that_is_never_taken_is_given_up_and_the_next_message_goes(
    ends: tuple[Peer, socket.socket], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    peer, theirs = ends
    peer.channel.send("take it", tcp_pair(stack)[0], peer.notes(1))
    peer.channel.send("the next")
    for _ in range(4):
        assert read_line(peer, theirs) == (ENVELOPE, 1)
        theirs.send(line({"cmd": NACK}))
    peer.until(lambda: peer.told == [(1, False)])
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
    assert left.told == [(1, True), (2, True)]


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


def given(tmp_path: Path, stack: ExitStack, what: str) -> list[int]:
    """Descriptors of the kinds that nobody should be sent."""
    if what == "fifo":
        fds = list(os.pipe())
    elif what == "file":
        fds = [os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]
    elif what == "eventfd":
        fds = [os.eventfd(0)]
    elif what == "device":
        fds = [os.open("/dev/null", os.O_RDONLY)]
    else:
        raise AssertionError(what)
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[:1]


@pytest.mark.parametrize("what", ["fifo", "file", "eventfd", "device"])
def test_a_descriptor_that_is_no_socket_is_closed_and_its_sender_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack, tmp_path: Path, what: str
) -> None:
    fds = given(tmp_path, stack, what)
    refuses(loop, [([line("good") + line(ENVELOPE)], fds)], "no socket", ["good"])


def refuses(
    loop: asyncio.AbstractEventLoop,
    sends: list[tuple[list[bytes], list[int]]],
    why: str,
    heard: list[Any] | None = None,
) -> None:
    """A peer that sends this is cut off, and no descriptor is left on either side."""
    before = descriptors()
    ours, theirs = pair()
    peer = Peer(loop, ours)
    for data, fds in sends:
        theirs.sendmsg(data, rights(*fds) if fds else [])
    peer.until(lambda: peer.goodbyes == 1)
    assert why in peer.channel.fault
    assert peer.messages == (heard or [])
    assert peer.channel.closed
    assert not peer.channel.send("more")
    theirs.settimeout(DEADLINE_S)
    try:
        while theirs.recv(1000):
            pass
    except ConnectionResetError:
        pass  # What we had not read when we closed.
    theirs.close()
    peer.close()
    assert descriptors() == before


def test_two_descriptors_with_one_line_are_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    refuses(loop, [([line(ENVELOPE)], [fd, fd])], "2 descriptors with one line")


def test_hundreds_of_descriptors_with_one_line_are_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    refuses(loop, [([line(ENVELOPE)], [fd] * 250)], "descriptors with one line")


def test_a_descriptor_beside_an_ordinary_line_is_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    refuses(loop, [([line("plain")], [fd])], "nobody asked for", ["plain"])


def test_a_descriptor_beside_the_middle_of_a_line_that_is_no_envelope_is_closed(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    sends = [([b'"pl'], []), ([b"ai"], [fd]), ([b'n"\n'], [])]
    refuses(loop, sends, "nobody asked for", ["plain"])


def test_descriptors_that_pile_up_beside_a_line_without_an_end_are_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    refuses(loop, [([b"["], [fd]) for _ in range(50)], "nobody asked for")


@pytest.mark.parametrize("command", [ACK, NACK])
def test_an_acknowledgement_that_nobody_asked_for_is_cut_off(
    loop: asyncio.AbstractEventLoop, command: str
) -> None:
    refuses(loop, [([line({"cmd": command})], [])], "acknowledgement that nobody asked for")


def test_garbage_with_a_descriptor_is_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    refuses(loop, [([b"garbage\n"], [fd])], "not JSON")


def test_a_second_acknowledgement_is_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("take it", tcp_pair(stack)[0], peer.notes(1))
    theirs.send(line({"cmd": ACK}) * 2)
    peer.until(lambda: peer.goodbyes == 1)
    assert peer.told == [(1, True)]
    assert "nobody asked for" in peer.channel.fault


def test_an_acknowledgement_before_the_handle_has_left_is_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("x" * (MAX_LINE - 200), tcp_pair(stack)[0], peer.notes(1))
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.goodbyes == 1)
    assert "nobody asked for" in peer.channel.fault
    assert peer.told == [(1, False)]


def test_descriptors_that_do_not_wait_for_their_acknowledgement_are_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    # It reads nothing, so acknowledgements would pile up here.
    peer, theirs = ends
    handle = tcp_pair(stack)[0]
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    peer.channel.send("x" * (MAX_LINE - 200))
    for _ in range(2):
        theirs.sendmsg([line(ENVELOPE)], rights(handle.fileno()))
    peer.until(lambda: peer.goodbyes == 1)
    assert "do not wait" in peer.channel.fault
    assert len(peer.handles) == 1


def test_a_line_of_100_megabytes_is_cut_off_after_one(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    before = descriptors()
    ours, theirs = pair()
    theirs.setblocking(True)
    fd = tcp_pair(stack)[0].fileno()
    inside = descriptors()
    peer = Peer(loop, ours)
    sent: list[int] = []

    def pour() -> None:
        piece = b"x" * (1 << 20)
        theirs.sendmsg([b'{"cmd":"NODE_HANDLE","msg":"'], rights(fd))
        try:
            while sum(sent) < 100 << 20:
                sent.append(theirs.send(piece))
        except OSError:
            return

    thread = threading.Thread(target=pour)
    thread.start()
    peer.until(lambda: peer.goodbyes == 1)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert sum(sent) < 8 << 20
    assert "a line of more than" in peer.channel.fault
    theirs.close()
    peer.close()
    # Neither the peer's two ends nor the descriptor that came with the line.
    assert len(inside) - len(descriptors()) == 2
    stack.close()
    assert len(before) - len(descriptors()) == 0


def test_handles_that_the_peer_never_takes_are_bounded_and_given_back(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, _ = ends
    handle = bound_udp(stack)
    before = len(descriptors())
    crowded = []
    while not peer.channel.closed:
        crowded.append(peer.channel.crowded)
        assert peer.channel.send("take it", handle, peer.notes(len(crowded)))
        assert len(crowded) <= MAX_HANDLES + 1
    assert crowded == [False] * MAX_HANDLES + [True], "it is known just before it is too late"
    assert peer.told == [], "nobody is called from within send"
    peer.until(lambda: peer.goodbyes == 1)
    assert peer.told == [(number + 1, False) for number in range(MAX_HANDLES + 1)]
    assert f"{MAX_HANDLES + 1} descriptors untaken" in peer.channel.fault
    assert len(descriptors()) == before - 1, "only the channel's own end is gone"


def test_who_has_to_send_more_at_one_go_can_say_so(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    before = descriptors()
    ours, theirs = pair()
    right = Peer(loop, theirs)
    told: list[bool] = []
    left = Channel(loop, ours, lambda _, __: None, lambda: None, most_handles=200)
    handle = bound_udp(stack)
    for number in range(200):
        assert left.send(number, handle, told.append)
    assert left.crowded
    right.until(lambda: len(told) == 200)
    assert right.messages == list(range(200))
    assert told == [True] * 200
    for _ in range(201):
        left.send("too many", handle)
    assert "201 descriptors untaken" in left.fault
    left.close()
    right.close()
    stack.close()
    assert descriptors() == before


def test_handles_on_their_way_to_a_peer_that_dies_are_closed_and_told_of(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    for number in range(10):
        peer.channel.send(number, bound_udp(stack), peer.notes(number))
    theirs.close()
    peer.until(lambda: peer.goodbyes == 1)
    assert peer.told == [(number, False) for number in range(10)]
    assert peer.channel.fault == "", "it just left"


def test_a_peer_that_only_stops_taking_is_gone_and_holds_no_descriptor_of_ours(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    # No end-of-file tells of it: its writing half is open.
    peer, theirs = ends
    theirs.send(line("last words"))
    theirs.shutdown(socket.SHUT_RD)
    peer.channel.send("take it", bound_udp(stack), peer.notes(1))
    assert peer.goodbyes == 0, "not from within send"
    peer.until(lambda: peer.goodbyes == 1)
    assert (peer.messages, peer.told) == (["last words"], [(1, False)])
    assert peer.channel.fault == ""
    assert not peer.channel.send("more")


def test_handles_that_wait_when_we_leave_are_closed_and_nobody_is_called(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, _ = ends
    for number in range(10):
        peer.channel.send(number, bound_udp(stack), peer.notes(number))
    peer.channel.close()
    nothing_happens(peer)
    assert (peer.told, peer.goodbyes) == ([], 0)


def test_a_sender_that_closes_when_it_hears_of_a_loss_hears_nothing_more(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    told: list[bool] = []

    def leave(taken: bool) -> None:
        told.append(taken)
        peer.channel.close()

    for _ in range(3):
        peer.channel.send("take it", bound_udp(stack), leave)
    theirs.close()
    peer.until(lambda: bool(told))
    nothing_happens(peer)
    assert (told, peer.goodbyes) == ([False], 0)


def test_a_sender_that_raises_when_it_is_told_costs_nothing_else(
    two: tuple[Peer, Peer], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    left, right = two

    def clumsy(taken: bool) -> None:
        raise ZeroDivisionError

    left.channel.send("first", bound_udp(stack), clumsy)
    left.channel.send("second")
    left.until(lambda: right.messages == ["first", "second"])
    assert "ZeroDivisionError" in caplog.text


def test_the_last_handle_of_a_peer_that_leaves_is_delivered(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    theirs.sendmsg([line(ENVELOPE)], rights(tcp_pair(stack)[0].fileno()))
    theirs.close()
    peer.until(lambda: peer.goodbyes == 1)
    assert (peer.messages, len(peer.handles), peer.channel.fault) == (["take it"], 1, "")


def test_a_kernel_that_is_short_is_waited_out_and_logged_once(
    ends: tuple[Peer, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    class Short:
        """The channel's socket, which the kernel has no memory for at first."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.errors = [errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def sendmsg(self, *arguments: Any) -> int:
            if self.errors:
                raise OSError(self.errors[0], os.strerror(self.errors.pop(0)))
            return self.sock.sendmsg(*arguments)

    peer, theirs = ends
    outgoing = peer.channel._outgoing
    outgoing._sock = Short(outgoing._sock)  # type: ignore[assignment]
    assert peer.channel.send("in the end")
    peer.until(lambda: outgoing._unsent == 0)
    assert read_line(peer, theirs) == ("in the end", 0)
    assert not peer.channel.closed
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# A real Node child.

NODE = """
const net = require('net'), dgram = require('dgram'), fs = require('fs')
const path = process.argv[2]
const serve = server => server.on('connection', s => s.end('node'))
process.on('message', (message, handle) => {
  if (message.take === 'server') serve(handle)
  else if (message.take === 'socket') handle.end('node')
  else if (message.take === 'udp') handle.on('message', (m, from) => handle.send('node', from.port))
  else if (message.give === 'server' || message.give === 'unix') {
    const server = net.createServer()
    const where = message.give === 'unix' ? path : {port: 0, host: '127.0.0.1'}
    server.listen(where, () => process.send({given: message.give}, server))
  } else if (message.give === 'socket') {
    const server = net.createServer({pauseOnConnect: true})
    server.on('connection', s => { process.send({given: 'socket'}, s); server.close() })
    server.listen(0, '127.0.0.1', () => process.send({port: server.address().port}))
  } else if (message.give === 'udp') {
    const udp = dgram.createSocket('udp4')
    udp.bind(0, '127.0.0.1', () => process.send({given: 'udp'}, udp))
  } else if (message === 'leave') { process.disconnect() }
  process.send({echo: message, handle: handle ? handle.constructor.name : null})
})
process.on('disconnect', () => process.exit(7))
process.send('hello from node')
"""


@pytest.fixture
def node(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> Iterator[tuple[Peer, subprocess.Popen[bytes]]]:
    script = tmp_path / "child.js"
    script.write_text(NODE)
    ours, theirs = pair()
    environment = {
        **os.environ,
        "NODE_CHANNEL_FD": str(theirs.fileno()),
        "NODE_CHANNEL_SERIALIZATION_MODE": "json",
    }
    with tempfile.TemporaryDirectory(prefix="ch") as short:
        child = subprocess.Popen(
            ["node", script, f"{short}/s"], env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        peer = Peer(loop, ours)
        try:
            peer.until(lambda: peer.messages == ["hello from node"])
            peer.messages.clear()
            yield peer, child
        finally:
            child.kill()
            child.wait()
            peer.close()


def echoed(peer: Peer, message: Any) -> str | None:
    """What Node made of the handle that came with this message."""
    answers: list[Any] = []

    def came() -> bool:
        answers[:] = [m for m in peer.messages if isinstance(m, dict) and m.get("echo") == message]
        return bool(answers)

    peer.until(came)
    found: str | None = answers[0]["handle"]
    return found


@pytest.mark.needs("node")
def test_node_takes_every_kind_of_socket(
    node: tuple[Peer, subprocess.Popen[bytes]], stack: ExitStack
) -> None:
    peer, _ = node
    listener, (served, client) = listening(stack), tcp_pair(stack)
    near, far = unix_pair(stack)
    udp, asker = bound_udp(stack), bound_udp(stack)
    asker.settimeout(DEADLINE_S)
    for number, (message, handle, kind) in enumerate(
        (
            ({"take": "server"}, listener, "Server"),
            ({"take": "socket"}, served, "Socket"),
            ({"take": "socket", "unix": True}, near, "Socket"),
            ({"take": "udp"}, udp, "Socket"),
        )
    ):
        assert peer.channel.send(message, handle, peer.notes(number))
        assert echoed(peer, message) == kind
    assert peer.told == [(number, True) for number in range(4)]
    public, address = listener.getsockname(), udp.getsockname()
    for handle in (listener, served, near, udp):
        handle.close()
    with socket.create_connection(public, DEADLINE_S) as visitor:
        assert visitor.recv(9) == b"node"
    asker.sendto(b"?", address)
    assert asker.recvfrom(9) == (b"node", address)
    assert client.recv(9) == far.recv(9) == b"node"


@pytest.mark.needs("node")
def test_node_gives_every_kind_of_socket(node: tuple[Peer, subprocess.Popen[bytes]]) -> None:
    peer, child = node
    for kind in ("server", "unix", "udp"):
        peer.channel.send({"give": kind})
        peer.until(lambda: {"given": kind} in peer.messages)  # noqa: B023 -- called before the next
    server, unix, udp = peer.handles
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert (unix.family, udp.type) == (socket.AF_UNIX, socket.SOCK_DGRAM)
    assert udp.getsockname()[0] == "127.0.0.1"
    peer.channel.send({"give": "socket"})
    peer.until(lambda: any(isinstance(m, dict) and "port" in m for m in peer.messages))
    (port,) = (m["port"] for m in peer.messages if isinstance(m, dict) and "port" in m)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
        peer.until(lambda: {"given": "socket"} in peer.messages)
        peer.handles[3].send(b"python")
        assert client.recv(9) == b"python"
    # Everything was acknowledged: Node's queue is free, and it can leave.
    peer.channel.send("leave")
    peer.until(lambda: peer.goodbyes == 1)
    assert child.wait(DEADLINE_S) == 7
    assert peer.channel.fault == ""


@pytest.mark.needs("node")
def test_node_and_we_send_each_other_many_handles_at_once(
    node: tuple[Peer, subprocess.Popen[bytes]], stack: ExitStack
) -> None:
    peer, child = node
    for number in range(30):
        peer.channel.send({"give": "udp"})
        peer.channel.send({"take": "socket", "n": number}, tcp_pair(stack)[0], peer.notes(number))
    peer.until(lambda: len(peer.told) == 30 and len(peer.handles) == 30)
    assert peer.told == [(number, True) for number in range(30)]
    assert child.poll() is None
