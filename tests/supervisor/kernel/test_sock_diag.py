"""Queues and connections of real sockets are reported as the kernel has them, or not at all."""

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.sock_diag import TcpEndpoint, accepted, connections_to, queues
from penstock_supervisor.snapshot import SocketKind, SocketQueue

DEADLINE_S = 10.0
ALL: tuple[SocketKind, ...] = ("tcp", "udp", "unix")
HOST = "127.91.0.1"
"""An address that no other program uses. On 127.0.0.1 connections of others in TIME_WAIT, to a
listener that had the same port before, would be counted too."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"


def listener(stack: ExitStack, host: str = HOST, backlog: int = 16) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return stack.enter_context(
        socket.create_server((host, 0), family=family, backlog=backlog, dualstack_ipv6=host == "::")
    )


def connect(stack: ExitStack, to: socket.socket, host: str = HOST) -> socket.socket:
    return stack.enter_context(socket.create_connection((host, port(to)), timeout=DEADLINE_S))


def start_connect(stack: ExitStack, to: socket.socket) -> None:
    """Start a connect, and do not wait for it."""
    sock = stack.enter_context(socket.socket())
    sock.setblocking(False)
    sock.connect_ex(to.getsockname())


def port(sock: socket.socket) -> int:
    number: int = sock.getsockname()[1]
    return number


def endpoint(sock: socket.socket) -> TcpEndpoint:
    return TcpEndpoint(HOST, port(sock))


def queue(sock: socket.socket, kind: Any = "tcp") -> SocketQueue:
    return queues({kind})[os.fstat(sock.fileno()).st_ino]


# Queues.


def test_the_length_of_a_queue_is_the_number_of_waiting_connections(stack: ExitStack) -> None:
    listening = listener(stack, backlog=10)
    assert queue(listening) == SocketQueue(0, 10, 0)
    for _ in range(3):
        connect(stack, listening)
    eventually(lambda: queue(listening) == SocketQueue(3, 10, 0), "three who wait")
    stack.enter_context(listening.accept()[0])
    assert queue(listening) == SocketQueue(2, 10, 0)


def test_overflows_of_a_full_queue_are_counted_and_stay_counted(stack: ExitStack) -> None:
    listening = listener(stack, backlog=1)
    # The kernel admits one more than the limit.
    for _ in range(2):
        connect(stack, listening)
    eventually(lambda: queue(listening) == SocketQueue(2, 1, 0), "a full queue")
    for _ in range(3):
        start_connect(stack, listening)
    eventually(lambda: (queue(listening).overflows or 0) >= 3, "three who found no room")
    for _ in range(2):
        stack.enter_context(listening.accept()[0])
    assert (queue(listening).overflows or 0) >= 3


def test_sockets_of_one_port_are_reported_separately(stack: ExitStack) -> None:
    first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True, backlog=50))
    second = stack.enter_context(
        socket.create_server(("127.0.0.1", port(first)), reuse_port=True, backlog=70)
    )
    for _ in range(40):
        stack.enter_context(socket.create_connection(("127.0.0.1", port(first)), DEADLINE_S))
        if (queue(first).length or 0) > 1 and (queue(second).length or 0) > 1:
            break
    assert (queue(first).limit, queue(second).limit) == (50, 70)
    assert (queue(first).length or 0) > 1
    assert (queue(second).length or 0) > 1


def test_a_listener_with_an_ipv6_address_has_a_queue(stack: ExitStack) -> None:
    listening = listener(stack, "::1", backlog=4)
    connect(stack, listening, "::1")
    eventually(lambda: queue(listening).length, "one who waits")
    assert queue(listening) == SocketQueue(1, 4, 0)


def test_a_unix_socket_has_a_queue_that_does_not_overflow(stack: ExitStack, tmp_path: Path) -> None:
    listening = stack.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(str(tmp_path / "s"))
    listening.listen(3)
    for _ in range(2):
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "s"))
    assert queue(listening, "unix") == SocketQueue(2, 3, None)


def test_dropped_datagrams_are_counted(stack: ExitStack) -> None:
    bound = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    bound.bind(("127.0.0.1", 0))
    assert queue(bound, "udp") == SocketQueue(None, None, 0)
    sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def some_are_lost() -> bool:
        sender.sendto(bytes(1000), bound.getsockname())
        return (queue(bound, "udp").overflows or 0) > 0

    eventually(some_are_lost, "a datagram that found no room")


def test_only_listening_sockets_of_the_given_kinds_are_reported(stack: ExitStack) -> None:
    listening = listener(stack)
    client = connect(stack, listening)
    assert os.fstat(client.fileno()).st_ino not in queues(ALL)
    assert os.fstat(listening.fileno()).st_ino not in queues({"udp", "unix"})
    assert queues(()) == {}


# Connections.


def test_connections_are_counted_by_their_remote_endpoint(stack: ExitStack) -> None:
    one, other, idle = (listener(stack) for _ in range(3))
    for _ in range(4):
        connect(stack, one)
    connect(stack, other)
    wanted = {endpoint(one): 4, endpoint(other): 1, endpoint(idle): 0}
    assert connections_to(wanted) == wanted


def test_a_connection_in_time_wait_still_counts(stack: ExitStack) -> None:
    listening = listener(stack)
    with ExitStack() as both:
        served = []
        for _ in range(5):
            client = connect(both, listening)
            served.append(both.enter_context(listening.accept()[0]))
            client.close()  # who closes first is the one that lingers
    lingering = f":{port(listening):04X} 06 "

    def all_linger() -> bool:
        return Path("/proc/net/tcp").read_text().count(lingering) == 5

    eventually(all_linger, "five in TIME_WAIT")
    assert connections_to([endpoint(listening)]) == {endpoint(listening): 5}
    assert accepted([endpoint(listening)]) == {endpoint(listening): 0}


def test_a_connection_is_accepted_when_a_process_has_its_descriptor(stack: ExitStack) -> None:
    listening = listener(stack)
    for _ in range(3):
        connect(stack, listening)
    address = endpoint(listening)
    assert accepted([address]) == {address: 0}
    for _ in range(2):
        stack.enter_context(listening.accept()[0])
    assert accepted([address]) == {address: 2}


def test_any_address_is_every_address_of_both_families(stack: ExitStack) -> None:
    listening = listener(stack, "::")
    for host in ("127.0.0.1", "::1"):
        connect(stack, listening, host)
        stack.enter_context(listening.accept()[0])
    number = port(listening)
    wanted = {
        TcpEndpoint("", number): 2,
        TcpEndpoint("127.0.0.1", number): 1,
        TcpEndpoint("::1", number): 1,
    }
    assert accepted(wanted) == wanted


def test_another_address_with_the_same_port_is_another_endpoint(stack: ExitStack) -> None:
    listening = listener(stack, "0.0.0.0")
    connect(stack, listening, HOST)
    connect(stack, listening, "127.91.0.2")
    connect(stack, listening, "127.91.0.2")
    number = port(listening)
    wanted = {TcpEndpoint(HOST, number): 1, TcpEndpoint("127.91.0.2", number): 2}
    assert connections_to(wanted) == wanted


@pytest.mark.parametrize("others", [0, 1, 63, 255, 256, 300])
def test_many_endpoints_can_be_counted_at_once(stack: ExitStack, others: int) -> None:
    first, last = sorted((listener(stack), listener(stack)), key=port)
    connect(stack, first)
    connect(stack, last)
    connect(stack, last)
    more = [TcpEndpoint("127.0.0.3", number) for number in range(20_000, 20_000 + others)]
    counts = connections_to([endpoint(last), *more, endpoint(first)])
    assert counts is not None
    assert {address: count for address, count in counts.items() if count} == {
        endpoint(first): 1, endpoint(last): 2,
    }  # fmt: skip


def test_a_host_name_has_no_connections(stack: ExitStack) -> None:
    listening = listener(stack)
    connect(stack, listening)
    named = TcpEndpoint("localhost", port(listening))
    assert connections_to([named]) == {named: 0}
    assert connections_to([]) == {}


# A kernel that does not answer, or not as it should.


class Kernel:
    """A fake netlink socket that returns one of `answers` for each read."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)

    def __call__(self, *_: object) -> "Kernel":
        return self

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, _: float) -> None:
        pass

    def sendto(self, *_: object) -> None:
        pass

    def recv(self, _: int) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


def message(kind: int, payload: bytes, length: int | None = None) -> bytes:
    size = 16 + len(payload) if length is None else length
    return struct.pack("=IHHII", size, kind, 0, 1, 0) + payload


@pytest.mark.parametrize(
    "answer",
    [
        PermissionError(errno.EPERM, "no"),
        TimeoutError("timed out"),
        message(2, struct.pack("=i", -errno.ENOENT) + bytes(20)),
        message(3, struct.pack("=i", -errno.EOPNOTSUPP)),
        message(20, bytes(72), length=4),
        message(20, bytes(72), length=4000),
    ],
    ids=["forbidden", "silent", "refused", "failed at the end", "too short", "too long"],
)
def test_without_an_answer_there_is_no_result_and_no_error(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | OSError
) -> None:
    address = TcpEndpoint("127.0.0.1", 1)
    for condition, nothing in (
        (lambda: queues({"tcp"}), {}),
        (lambda: connections_to([address]), None),
        (lambda: accepted([address]), None),
    ):
        monkeypatch.setattr("penstock_supervisor.kernel.sock_diag.socket.socket", Kernel(answer))
        assert condition() == nothing


def test_a_kind_that_is_refused_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    listening = listener(stack)

    def refused(_: str) -> Any:
        raise OSError(errno.ENOENT, "no such module")

    genuine = sock_diag._queues
    monkeypatch.setattr(
        sock_diag, "_queues", lambda kind: (refused if kind == "udp" else genuine)(kind)
    )
    assert os.fstat(listening.fileno()).st_ino in queues(("udp", "tcp", "unix"))


@pytest.mark.parametrize(
    "payload", [b"", bytes(40), bytes(71), bytes(72) + b"\1", bytes(72) + b"\3\0\7\0" + bytes(8)]
)
def test_a_truncated_row_is_ignored(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    answers = (message(20, payload), message(3, bytes(4)))
    monkeypatch.setattr(
        "penstock_supervisor.kernel.sock_diag.socket.socket", Kernel(*answers, *answers)
    )
    assert all(queue.overflows is None for queue in queues({"tcp"}).values())


def test_no_more_rows_are_read_than_the_bound(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    listening = listener(stack)
    for _ in range(8):
        connect(stack, listening)
    monkeypatch.setattr(sock_diag, "MAX_ROWS", 5)
    rows: list[bytes] = []
    genuine = sock_diag._dump

    def recorded(request: bytes, min_size: int) -> Iterator[bytes]:
        for row in genuine(request, min_size):
            rows.append(row)
            yield row

    monkeypatch.setattr(sock_diag, "_dump", recorded)
    # Not all five need to be ours: another program may be at this port of another address.
    found = connections_to([endpoint(listening)])
    assert len(rows) == 5
    assert found is not None
    assert 0 < found[endpoint(listening)] <= 5


def test_a_query_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    address = endpoint(listener(stack))
    before = descriptors()
    for _ in range(3):
        queues(ALL)
        connections_to([address])
        accepted([address])
    monkeypatch.setattr(sock_diag, "_SOCK_DIAG_BY_FAMILY", 9999)
    assert queues(ALL) == {}
    assert descriptors() == before
