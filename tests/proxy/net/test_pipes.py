"""Bytes go through a pipe from socket to socket; a pipe with bytes in it is never lent again."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from tests.support.descriptors import descriptors, next_descriptor, no_descriptor_left

from penstock_proxy.net import pipes as module
from penstock_proxy.net.pipes import Pipe, Pipes
from penstock_proxy.net.unsent import Unsent
from penstock_proxy.service.fd_budget import FdBudget


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    before = descriptors()
    made = Pipes()
    yield made
    made.close()
    assert descriptors() == before


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def taken(pipes: Pipes) -> Pipe:
    pipe = pipes.take()
    assert pipe is not None
    return pipe


def filled(pipes: Pipes, data: bytes) -> Pipe:
    pipe = taken(pipes)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        theirs.sendall(data)
        assert pipe.fill(ours.fileno(), 1 << 20) == pipe.held == len(data)
    return pipe


def stuff(sock: socket.socket) -> int:
    """Fill its send buffer. Returns how many bytes it took."""
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += sock.send(b"." * 4096)
    return size


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with suppress(BlockingIOError):
        while piece := sock.recv(1 << 20):
            data += piece
    return data


def test_what_goes_in_comes_out(pipes: Pipes, ends: tuple[socket.socket, socket.socket]) -> None:
    pipe = filled(pipes, b"ab" * 1000)
    pipe.send(ends[0].fileno())
    assert pipe.held == 0
    assert read_all(ends[1]) == b"ab" * 1000
    pipes.give(pipe)


def test_nothing_to_be_had_is_no_error(
    pipes: Pipes, ends: tuple[socket.socket, socket.socket]
) -> None:
    pipe = taken(pipes)
    assert pipe.fill(ends[0].fileno(), 100) == 0
    ends[1].close()
    assert pipe.fill(ends[0].fileno(), 100) == 0
    with select.epoll() as epoll:
        assert pipe.fill(epoll.fileno(), 100) == 0, "it cannot be spliced"
    assert pipe.held == 0
    pipes.give(pipe)


def test_a_reset_is_an_error_in_both_directions(
    pipes: Pipes, ends: tuple[socket.socket, socket.socket]
) -> None:
    pipe = filled(pipes, b"x")
    ends[0].sendall(b"unread")
    ends[1].close()
    other = taken(pipes)
    with pytest.raises(ConnectionResetError):
        other.fill(ends[0].fileno(), 100)
    with pytest.raises(OSError):  # noqa: PT011 — whichever it is
        pipe.send(ends[0].fileno())
    assert (pipe.held, other.held) == (1, 0)
    pipes.give(pipe)
    pipes.give(other)


def test_a_pipe_that_still_holds_bytes_is_closed(pipes: Pipes) -> None:
    before = descriptors()
    pipe = filled(pipes, b"of one client")
    assert descriptors() == before + 2
    pipes.give(pipe)
    assert descriptors() == before
    other = taken(pipes)
    assert other is not pipe
    assert other.held == 0
    with pytest.raises(BlockingIOError):
        os.read(other._read_fd, 1)
    pipes.give(other)


def test_an_empty_pipe_is_used_again(pipes: Pipes) -> None:
    pipe = taken(pipes)
    pipes.give(pipe)
    assert pipes.take() is pipe
    pipes.give(pipe)


def test_what_a_socket_does_not_take_stays_in_the_pipe_and_can_be_taken_out(
    pipes: Pipes, ends: tuple[socket.socket, socket.socket]
) -> None:
    size = stuff(ends[0])
    pipe = filled(pipes, b"x" * 50_000)
    pipe.send(ends[0].fileno())
    assert pipe.held == 50_000
    assert len(read_all(ends[1])) == size
    pipe.send(ends[0].fileno())
    left = pipe.held
    assert left < 50_000
    assert pipe.take_out() == b"x" * left
    assert pipe.held == 0
    pipes.give(pipe)


def test_there_are_no_more_than_a_few(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    one = taken(pipes)
    assert pipes.may_be_kept()
    other = taken(pipes)
    assert pipes.take() is None
    assert not pipes.may_be_kept()
    pipes.give(one)
    assert pipes.may_be_kept()
    pipes.give(other)


def test_what_nobody_needed_for_a_while_is_closed(pipes: Pipes) -> None:
    before = descriptors()
    some = [taken(pipes) for _ in range(3)]
    for pipe in some:
        pipes.give(pipe)
    pipes.tick()
    assert descriptors() == before + 6, "they were needed until now"
    pipes.give(taken(pipes))
    pipes.tick()
    assert descriptors() == before + 2, "one is enough"
    pipes.tick()
    assert descriptors() == before


def test_descriptors_are_counted_and_left_to_connections(pipes: Pipes) -> None:
    budget = FdBudget(1024, 0, 0)
    pipes.descriptors = budget
    pipe = taken(pipes)
    assert budget.pipes == budget.open == budget.by_kind()["pipe"] == 2
    budget.clients = budget.capacity - 10
    assert pipes.take() is None
    assert not pipes.may_be_kept()
    pipes.give(pipe)
    assert pipes.take() is pipe, "it is open anyway"
    pipes.give(pipe)
    pipes.close()
    assert budget.pipes == 0


def test_without_a_descriptor_there_is_no_pipe(pipes: Pipes) -> None:
    since = next_descriptor()
    with no_descriptor_left(since):
        assert pipes.take() is None
    pipes.give(taken(pipes))


def test_a_pipe_that_cannot_be_made_large_is_not_used(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError(errno.EPERM, "the user has too many pages in pipes")

    before = descriptors()
    monkeypatch.setattr(module, "fcntl", refused)
    assert pipes.take() is None
    assert descriptors() == before


# -- what is unsent


def test_what_is_in_a_pipe_goes_first(
    pipes: Pipes, ends: tuple[socket.socket, socket.socket]
) -> None:
    unsent = Unsent(pipes, filled(pipes, b"1" * 1000))
    unsent.append(b"2")
    unsent.append(b"3")
    assert unsent.is_piped()
    assert unsent.size == 1002
    unsent.send(ends[0].fileno())
    assert not unsent.is_piped()
    assert unsent.size == 0
    assert read_all(ends[1]) == b"1" * 1000 + b"23"
    assert len(pipes._spare) == 1, "it has been given back"


def test_every_byte_is_sent_in_its_order_however_little_is_taken(
    pipes: Pipes, ends: tuple[socket.socket, socket.socket]
) -> None:
    stuffed = stuff(ends[0])
    unsent = Unsent(pipes, filled(pipes, b"1" * 60_000))
    for _ in range(100):
        unsent.append(b"2" * 5_000)
    got = b""
    while unsent.size:
        before = unsent.size
        with suppress(BlockingIOError):
            unsent.send(ends[0].fileno())
        assert unsent.size <= before
        got += ends[1].recv(10_000)
    got += read_all(ends[1])
    assert got[stuffed:] == b"1" * 60_000 + b"2" * 500_000


def test_what_is_discarded_is_closed_with_its_pipe(pipes: Pipes) -> None:
    before = descriptors()
    unsent = Unsent(pipes, filled(pipes, b"never sent"))
    unsent.append(b"nor this")
    unsent.discard()
    unsent.discard()
    assert descriptors() == before
