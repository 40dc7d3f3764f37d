"""A worker serves connections from shared sockets, links and the channel, and leaks no descriptor.

A socket or link that it cannot serve is a failure in one line. Real processes: the test is the
supervisor and, over a link, the proxy.

Covers `contract` and `runtime/supervisor_link`.
"""

import contextlib
import json
import re
import resource
import signal
import socket
from pathlib import Path

import pytest
from tests.support.worker import clients
from tests.support.worker.clients import APPS, DEMO, Link, Start, until

from penstock_worker import contract
from penstock_worker.handoff import protocol


def test_the_first_message_names_the_process(serve: Start) -> None:
    served = serve(DEMO)
    message = json.loads(served.link.recv(4096).partition(b"\n")[0])
    assert message == {"cmd": contract.ONLINE, "pid": served.process.pid}


def test_workers_that_share_a_socket_all_get_work(shared: Start, listener: socket.socket) -> None:
    workers = [shared(DEMO, listener, slot) for slot in range(2)]
    seen: set[bytes] = set()

    def both_answered() -> bool:
        asking = [clients.asked(listener) for _ in range(16)]
        seen.update(clients.answer(client).split(b" (")[0] for client in asking)
        return len(seen) == len(workers)

    until(both_answered)
    assert seen == {b"hello from web/0", b"hello from web/1"}


def test_a_socket_that_two_share_survives_one_of_them(shared: Start, port: socket.socket) -> None:
    first, second = (shared(DEMO, port, slot) for slot in range(2))
    first.signal(signal.SIGKILL)
    assert first.exit_status() == -signal.SIGKILL
    assert {clients.get(port).split(b" (")[0] for _ in range(8)} == {b"hello from web/1"}
    second.signal(signal.SIGTERM)
    assert second.exit_status() == 0


def test_sockets_for_another_process_are_left_alone(serve: Start) -> None:
    served = serve(DEMO, LISTEN_FDS="1", LISTEN_PID="1")
    assert served.port()


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "9999", "٣"])
def test_a_senseless_number_of_sockets_is_a_failure_in_one_line(serve: Start, count: str) -> None:
    served = serve(DEMO, LISTEN_FDS=count)
    reason = f"LISTEN_FDS={count!r} is not a number of sockets"
    assert served.receive() == {"cmd": contract.FAILED, "reason": reason}
    assert served.exit_status() == contract.EXIT_FAILED


def test_sockets_that_do_not_exist_are_a_failure_in_one_line(serve: Start) -> None:
    served = serve(DEMO, LISTEN_FDS="300")
    assert "not all of them are there: bad file descriptor" in served.receive()["reason"]


def test_a_socket_of_an_unsupported_kind_is_a_failure_in_one_line(serve: Start) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        served = serve(DEMO, passed=one)
        assert "no TCP, UDP or unix socket" in served.receive()["reason"]


@pytest.mark.parametrize("number", ["x", "-1", "1"])
def test_a_descriptor_that_is_no_link_is_a_failure_in_one_line(serve: Start, number: str) -> None:
    served = serve(DEMO, PENSTOCK_LINK_FD=number)
    assert f"PENSTOCK_LINK_FD={number!r} is no " in served.receive()["reason"]
    assert served.exit_status() == contract.EXIT_FAILED


@pytest.mark.parametrize("spec", APPS)
def test_connections_of_a_link_are_served_and_their_ends_reported(
    linked: Start, spec: str, link: Link
) -> None:
    linked(spec)
    three = [link.client() for _ in range(3)]
    link.reported(taken=3, ended=0)
    for client in three:
        assert clients.exchange(client) == b"hello"
    link.reported(taken=0, ended=3)


@pytest.mark.parametrize("spec", APPS)
def test_each_proxy_gets_reports_of_its_own_clients_over_its_own_link(
    serve: Start, spec: str
) -> None:
    links = [Link() for _ in range(2)]
    fds = [link.worker.fileno() for link in links]
    served = serve(
        spec, inherits=fds, PENSTOCK_LINK_FD=",".join(map(str, fds)), PENSTOCK_SCHEME="handoff"
    ).ready()
    for link in links:
        link.worker.close()
        pair = [link.client() for _ in range(2)]
        link.reported(taken=2, ended=0)
        for client in pair:
            assert clients.exchange(client) == b"hello"
        link.reported(taken=0, ended=2)
    assert served.stats()["fds"]["channel"] == 3
    # The worker goes on with one link when the other is gone.
    links[0].close()
    assert clients.exchange(links[1].client()) == b"hello"
    links[1].close()


@pytest.mark.parametrize("spec", APPS)
def test_a_health_check_over_a_link_is_served_and_not_counted(
    linked: Start, spec: str, link: Link
) -> None:
    served = linked(spec)
    probe = link.client(protocol.PROBE)
    assert clients.exchange(probe) == b"hello"
    link.reported(taken=1, ended=0)
    assert served.stats()["series"]["penstock_requests_total"] == {}


@pytest.mark.parametrize("spec", APPS)
def test_a_health_check_over_the_channel_is_served_and_not_counted(
    shared: Start, spec: str, port: socket.socket
) -> None:
    served = shared(spec, port)
    mine, theirs = socket.socketpair()
    with theirs:
        served.send({"cmd": contract.PROBE}, theirs)
    assert clients.exchange(mine) == b"hello"
    series = served.stats()["series"]
    assert series["penstock_requests_total"] == {}
    assert series["penstock_connections_total"] == {"": 0}


def test_a_ping_is_answered(serve: Start) -> None:
    served = serve(DEMO).ready()
    served.send({"cmd": contract.PING, "seq": 5})
    assert served.receive() == {"cmd": contract.PONG, "seq": 5}


@pytest.mark.parametrize("app", APPS)
def test_idle_connections_over_a_link_are_ended_when_a_proxy_is_full(
    serve: Start, link: Link, app: str
) -> None:
    served = serve(app, link=link.worker, PENSTOCK_SCHEME="handoff").ready()
    kept = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    idle, other, busy, probe = (*(link.client() for _ in range(3)), link.client(protocol.PROBE))
    with idle, other, busy, probe:
        for client in (idle, other, probe):
            client.sendall(kept)
            received = b""
            while not received.endswith(b"hello"):
                received += client.recv(65536)
        busy.sendall(clients.GET % b"/slow")
        link.reported(4, 0)
        senseless: tuple[object, ...] = (None, "1", 0, -1, 1.5, [2], {})
        for count in senseless:
            served.send({"cmd": contract.MAKE_ROOM, "count": count})

        def is_ended() -> bool:
            # None is ended in its first second.
            served.send({"cmd": contract.MAKE_ROOM, "count": 1})
            served.stats()
            return bool(served.stats()["fds"]["client"] == 2)

        until(is_ended)
        link.reported(0, 2)
        assert idle.recv(1) == other.recv(1) == b""
        for _ in range(3):
            served.send({"cmd": contract.MAKE_ROOM, "count": 9})
        Path(served.directory, "finish").touch()
        assert clients.answer(busy) == b"slow"
        probe.sendall(clients.GET % b"/")
        assert clients.answer(probe) == b"hello"


def test_a_descriptor_beside_a_message_that_takes_none_is_closed(serve: Start) -> None:
    served = serve(DEMO).ready()
    before = served.stats()["fds"]
    mine, theirs = socket.socketpair()
    with mine, theirs:
        for command in (contract.PING, contract.INTERNAL + "FUTURE", contract.LISTEN):
            served.send({"cmd": command}, theirs)
        assert served.stats()["fds"] == before


def test_a_new_listening_socket_replaces_one_that_was_shut_down(serve: Start) -> None:
    with socket.socket() as old, socket.socket() as new:
        for sock in (old, new):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(old.getsockname() if sock is new else ("127.0.0.1", 0))
        old.listen()
        served = serve("aio:app", passed=old, PENSTOCK_SCHEME="reuseport").ready()
        assert clients.get(old) == b"hello"
        address = old.getsockname()
        old.shutdown(socket.SHUT_RDWR)
        until(lambda: served.stats()["fds"]["listener"] == 0)
        new.listen()
        served.send({"cmd": contract.LISTEN}, new)
        assert new.getsockname() == address
        assert clients.get(new) == b"hello"
        assert served.stats()["fds"]["listener"] == 1


def ask(address: tuple[str, int], text: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(clients.DEADLINE_S)
        client.sendto(text, address)
        return client.recv(65536)


def test_datagrams_are_served_on_a_passed_socket(serve: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        served = serve(
            "penstock_worker.demo:udp",
            passed=sock,
            PENSTOCK_SCHEME="shared",
            PENSTOCK_SERVICE="dns",
            PENSTOCK_SLOT="2",
        ).ready()
        assert ask(sock.getsockname(), b"hello\n") == b"hello from dns/2\n"
        assert ask(sock.getsockname(), b"\x00 echo") == b"\x00 echo"
        assert served.stats()["fds"]["listener"] == 1
        served.send({"cmd": contract.PING, "seq": 1})
        assert served.receive() == {"cmd": contract.PONG, "seq": 1}
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0


def test_without_a_supervisor_a_datagram_program_binds_its_port(serve: Start) -> None:
    served = serve("penstock_worker.demo:udp", supervised=False)
    until(lambda: "\n" in served.stderr())
    found = re.search(r" on udp://127\.0\.0\.1:(\d+) ", served.stderr())
    assert found is not None, served.stderr()
    assert ask(("127.0.0.1", int(found[1])), b"hello\n") == b"hello from worker\n"
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0


def test_a_program_and_a_socket_of_different_kinds_are_a_failure_in_one_line(
    serve: Start, port: socket.socket
) -> None:
    assert 'set mode = "udp"' in serve("penstock_worker.demo:udp", passed=port).receive()["reason"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert "asyncio.DatagramProtocol is wanted" in serve(DEMO, passed=sock).receive()["reason"]


def test_the_descriptor_limit_is_raised_to_the_hard_limit(serve: Start) -> None:
    served = serve(DEMO).ready()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("spec", APPS)
def test_serving_many_leaves_no_descriptor_behind(
    shared: Start, spec: str, port: socket.socket
) -> None:
    served = shared(spec, port)
    assert clients.get(port) == b"hello"
    before = served.stats()["fds"]
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(clients.connected(port))
        until(lambda: served.stats()["fds"]["client"] == 50)
    until(lambda: served.stats()["fds"] == before)
    assert len([*Path(f"/proc/{served.process.pid}/fd").iterdir()]) == sum(before.values())
