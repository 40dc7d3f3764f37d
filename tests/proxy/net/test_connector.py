"""A connect ends in exactly one call, at once if the kernel knows at once, and leaks nothing."""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from tests.support.proxy.recorder import Recorder

from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import (
    Connecting,
    connect,
    connect_unix,
    error_text,
    socket_address,
)
from penstock_worker.net.stream import Stream, adopt

DEADLINE_S = 10.0


def descriptors() -> set[str]:
    """The open descriptors, without the one that lists them."""
    return {fd.name for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop()
        yield runner


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextmanager
def full_listener() -> Iterator[socket.socket]:
    """A listener whose queue is full: it answers no connect until it has accepted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(2):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.append(client)
        try:
            yield listener
        finally:
            for client in waiting:
                client.close()


@contextmanager
def full_unix_listener(folder: Path) -> Iterator[socket.socket]:
    """The same at a path, where the kernel answers EAGAIN."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "full"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            yield listener


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Opening one more fails with EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class Calls(list[tuple[Stream | None, int]]):
    """What `done` was called with."""

    def __call__(self, stream: Stream | None, error: int) -> None:
        self.append((stream, error))


def target(sock: socket.socket) -> tuple[int, Any]:
    host, port = sock.getsockname()[:2]
    return socket_address(parse_address(f"{host}:{port}"))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 — nothing sets an event for us
            await asyncio.sleep(0.001)


def test_a_target_is_numeric() -> None:
    assert socket_address(parse_address("127.0.0.1:80")) == (socket.AF_INET, ("127.0.0.1", 80))
    assert socket_address(parse_address("[::1]:80")) == (socket.AF_INET6, ("::1", 80, 0, 0))
    assert socket_address(parse_address("unix:/a")) == (socket.AF_UNIX, "/a")
    with pytest.raises(OSError, match="not known"):
        socket_address(parse_address("localhost:80"))


def test_on_one_host_a_connect_is_done_at_once(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    calls = Calls()
    assert connect(runner.get_loop(), target(listener), calls) is None
    ((stream, error),) = calls
    assert error == 0
    assert stream is not None
    assert (stream.family, stream.type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert not os.get_blocking(stream.fileno())
    assert not os.get_inheritable(stream.fileno())
    stream.close()


def test_a_unix_socket_is_connected_to(runner: asyncio.Runner, tmp_path: Path) -> None:
    calls, path = Calls(), str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert connect(runner.get_loop(), (socket.AF_UNIX, path), calls) is None
    ((stream, error),) = calls
    assert error == 0
    assert stream is not None
    stream.close()


def test_a_refusal_is_reported_at_once_and_leaks_nothing(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    calls, loop = Calls(), runner.get_loop()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        before = descriptors()
        assert connect(loop, target(silent), calls) is None
        assert connect(loop, (socket.AF_UNIX, str(tmp_path / "none")), calls) is None
        assert descriptors() == before
    assert calls == [(None, errno.ECONNREFUSED), (None, errno.ENOENT)]
    assert error_text(calls[0][1]) == "Connection refused"


def test_no_descriptor_left_is_reported_like_a_refusal(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    calls = Calls()
    with no_descriptors():
        assert connect(runner.get_loop(), target(listener), calls) is None
    assert calls == [(None, errno.EMFILE)]


def test_a_worker_that_answers_late_is_connected_to(runner: asyncio.Runner) -> None:
    calls = Calls()
    with full_listener() as listener:

        async def main() -> None:
            connecting = connect(asyncio.get_running_loop(), target(listener), calls)
            assert isinstance(connecting, Connecting)
            assert not calls
            while not calls:
                listener.accept()[0].close()
                await until(lambda: calls)

        runner.run(main())
    ((stream, error),) = calls
    assert error == 0
    assert stream is not None
    stream.close()


def test_a_worker_that_dies_during_the_connect_refuses(runner: asyncio.Runner) -> None:
    calls = Calls()
    with full_listener() as listener:
        before = descriptors()

        async def main() -> None:
            assert connect(asyncio.get_running_loop(), target(listener), calls) is not None
            listener.close()
            await until(lambda: calls)

        runner.run(main())
        assert descriptors() < before
    assert calls == [(None, errno.ECONNREFUSED)]


def test_a_connect_that_is_cancelled_reports_nothing(runner: asyncio.Runner) -> None:
    calls = Calls()
    with full_listener() as listener:

        async def main() -> None:
            # The loop opens descriptors of its own at its first turn.
            await asyncio.sleep(0)
            before = descriptors()
            connecting = connect(asyncio.get_running_loop(), target(listener), calls)
            assert connecting is not None
            connecting.cancel()
            assert descriptors() == before
            await asyncio.sleep(0)

        runner.run(main())
    assert calls == []


def test_a_full_queue_of_a_unix_socket_is_waited_for(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    calls = Calls()
    with full_unix_listener(tmp_path) as listener:

        async def main() -> None:
            where = (socket.AF_UNIX, listener.getsockname())
            connecting = connect(asyncio.get_running_loop(), where, calls, b"PROXY")
            assert isinstance(connecting, Connecting)
            await asyncio.sleep(0.02)
            assert not calls
            listener.accept()[0].close()
            await until(lambda: calls)

        runner.run(main())
        ((stream, error),) = calls
        assert error == 0
        assert stream is not None
        with listener.accept()[0] as theirs:
            assert theirs.recv(9) == b"PROXY"
        stream.close()


def test_who_closes_a_full_queue_refuses(runner: asyncio.Runner, tmp_path: Path) -> None:
    calls = Calls()
    with full_unix_listener(tmp_path) as listener:

        async def main() -> None:
            where = (socket.AF_UNIX, listener.getsockname())
            connect(asyncio.get_running_loop(), where, calls)
            listener.close()
            await until(lambda: calls)

        runner.run(main())
    assert calls == [(None, errno.ECONNREFUSED)]


def test_a_wait_for_a_full_queue_can_be_cancelled(runner: asyncio.Runner, tmp_path: Path) -> None:
    calls = Calls()
    with full_unix_listener(tmp_path) as listener:

        async def main() -> None:
            await asyncio.sleep(0)
            before = descriptors()
            where = (socket.AF_UNIX, listener.getsockname())
            connecting = connect(asyncio.get_running_loop(), where, calls)
            assert connecting is not None
            connecting.cancel()
            assert descriptors() == before
            await asyncio.sleep(0.02)

        runner.run(main())
    assert calls == []


def test_a_task_waits_for_a_full_queue_and_leaks_nothing(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    with full_unix_listener(tmp_path) as listener:

        async def main() -> None:
            await asyncio.sleep(0)
            before = descriptors()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await connect_unix(listener.getsockname())
            assert descriptors() == before
            listener.accept()[0].close()
            (await connect_unix(listener.getsockname())).close()
            with pytest.raises(FileNotFoundError):
                await connect_unix(f"{listener.getsockname()}.none")

        runner.run(main())


def connected(listener: socket.socket) -> tuple[Stream, socket.socket]:
    """A stream that is connected to the listener, and its other end."""
    calls = Calls()
    connect(asyncio.get_running_loop(), target(listener), calls)
    ((stream, _),) = calls
    assert stream is not None
    return stream, listener.accept()[0]


def test_a_stream_becomes_a_transport_in_the_next_turn(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    async def main() -> None:
        stream, peer = connected(listener)
        protocol = Recorder()
        with peer:
            number = str(stream.fileno())
            adopt(asyncio.get_running_loop(), cast("asyncio.Protocol", protocol), stream)
            stream.close()  # the transport has it
            assert protocol.calls == []
            await until(lambda: protocol.calls)
            assert number in descriptors()
            peer.sendall(b"a")
            await until(lambda: protocol.data == b"a")
            protocol.transport.write(b"b")
            assert peer.recv(1) == b"b"
            protocol.transport.close()
            await until(lambda: "lost" in protocol.calls)
            assert peer.recv(1) == b""
            assert number not in descriptors()
        assert protocol.calls == ["made", "lost"]

    runner.run(main())


def test_a_connection_that_is_reset_before_it_is_adopted_is_reported_as_lost(
    runner: asyncio.Runner, listener: socket.socket
) -> None:
    async def main() -> None:
        stream, peer = connected(listener)
        protocol = Recorder()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        adopt(asyncio.get_running_loop(), cast("asyncio.Protocol", protocol), stream)
        await until(lambda: "lost" in protocol.calls)
        assert protocol.calls == ["made", "lost"]

    runner.run(main())


def test_a_stream_is_closed_once(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname())
    stream = Stream(client.detach(), socket.AF_INET)
    number = stream.fileno()
    stream.close()
    reused = os.open(os.devnull, os.O_RDONLY)
    try:
        assert reused == number
        stream.close()
        os.fstat(reused)
    finally:
        os.close(reused)
