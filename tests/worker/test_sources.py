"""Wherever connections come from, they are served, counted once, and answered at the end.

Real processes: the test is the supervisor and, over a link, the front.
"""

import contextlib
import json
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from penstock_worker import contract, handoff

if TYPE_CHECKING:
    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 30.0
DEMO = "penstock_worker.demo:app"
APPS = ("aio:app", "asg:app")
GET = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def connected(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family)
    client.settimeout(DEADLINE_S)
    client.connect(listener.getsockname())
    return client


def answer(client: socket.socket) -> bytes:
    """All that comes; the body of a response."""
    with client:
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), received
    return body


def asked(listener: socket.socket, path: bytes = b"/") -> socket.socket:
    client = connected(listener)
    client.sendall(GET % path)
    return client


def get(listener: socket.socket, path: bytes = b"/") -> bytes:
    return answer(asked(listener, path))


def queued(listener: socket.socket) -> int:
    """How many wait to be accepted: tcpi_unacked."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    (count,) = struct.unpack_from("I", info, 24)
    return int(count)


def passed_on(front: socket.socket, kind: bytes = handoff.CLIENT) -> socket.socket:
    """A client whose connection was sent over the link."""
    mine, theirs = socket.socketpair()
    mine.settimeout(DEADLINE_S)
    with theirs:
        handoff.send(front, kind, [theirs.fileno()])
    return mine


def reported(front: socket.socket, taken: int, ended: int) -> None:
    """Wait until the worker has said exactly that."""
    heard = [0, 0]

    def said() -> bool:
        report = handoff.reports(front)
        if report is not None:
            heard[0] += report.taken
            heard[1] += report.ended
        return heard == [taken, ended]

    until(said)


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "socket"))
        sock.listen(512)
    with sock:
        yield sock


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A link: the front's end and the worker's."""
    front, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with front, worker:
        front.setblocking(False)
        yield front, worker


def shared(serve: "Serve", spec: str, listener: socket.socket, slot: int = 0) -> "Served":
    return serve(
        spec,
        passed=listener,
        PENSTOCK_SCHEME="shared",
        PENSTOCK_SERVICE="web",
        PENSTOCK_SLOT=str(slot),
    ).ready()


def linked(serve: "Serve", spec: str, worker: socket.socket) -> "Served":
    return serve(
        spec, link=worker, PENSTOCK_SCHEME="handoff", PENSTOCK_SERVICE="web", PENSTOCK_SLOT="0"
    ).ready()


def test_the_first_word_is_who_it_is(serve: "Serve") -> None:
    served = serve(DEMO)
    message = json.loads(served.link.recv(4096).partition(b"\n")[0])
    assert message == {"cmd": contract.ONLINE, "pid": served.process.pid}


def test_workers_that_share_a_socket_all_get_work(serve: "Serve", listener: socket.socket) -> None:
    workers = [shared(serve, DEMO, listener, slot) for slot in range(2)]
    seen: set[bytes] = set()

    def both_answered() -> bool:
        clients = [asked(listener) for _ in range(16)]
        seen.update(answer(client).split(b" (")[0] for client in clients)
        return len(seen) == len(workers)

    until(both_answered)
    assert seen == {b"hello from web/0", b"hello from web/1"}


def test_a_socket_that_two_share_survives_one_of_them(serve: "Serve", port: socket.socket) -> None:
    first, second = (shared(serve, DEMO, port, slot) for slot in range(2))
    first.signal(signal.SIGKILL)
    assert first.exit_status() == -signal.SIGKILL
    assert {get(port).split(b" (")[0] for _ in range(8)} == {b"hello from web/1"}
    second.signal(signal.SIGTERM)
    assert second.exit_status() == 0


def test_sockets_for_another_process_are_left_alone(serve: "Serve") -> None:
    served = serve(DEMO, LISTEN_FDS="1", LISTEN_PID="1")
    assert served.port()


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "9999", "٣"])
def test_a_senseless_number_of_sockets_is_one_line(serve: "Serve", count: str) -> None:
    served = serve(DEMO, LISTEN_FDS=count)
    reason = f"LISTEN_FDS={count!r} is not a number of sockets"
    assert served.hear() == {"cmd": contract.FAILED, "reason": reason}
    assert served.exit_status() == contract.EXIT_FAILED


def test_sockets_that_are_not_there_are_one_line(serve: "Serve") -> None:
    served = serve(DEMO, LISTEN_FDS="300")
    assert "not all of them are there: bad file descriptor" in served.hear()["reason"]


def test_a_socket_that_nobody_can_serve_is_one_line(serve: "Serve") -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        served = serve(DEMO, passed=one)
        assert "no TCP, UDP or unix socket" in served.hear()["reason"]


@pytest.mark.parametrize("number", ["x", "-1", "1"])
def test_a_link_that_is_none_is_one_line(serve: "Serve", number: str) -> None:
    served = serve(DEMO, PENSTOCK_LINK_FD=number)
    assert f"PENSTOCK_LINK_FD={number!r} is no " in served.hear()["reason"]
    assert served.exit_status() == contract.EXIT_FAILED


@pytest.mark.parametrize("spec", APPS)
def test_connections_of_a_link_are_served_and_their_ends_told(
    serve: "Serve", spec: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    front, worker = ends
    linked(serve, spec, worker)
    clients = [passed_on(front) for _ in range(3)]
    reported(front, taken=3, ended=0)
    for client in clients:
        client.sendall(GET % b"/")
        assert answer(client) == b"hello"
    reported(front, taken=0, ended=3)


@pytest.mark.parametrize("spec", APPS)
def test_each_front_has_a_link_and_hears_of_its_own_clients(serve: "Serve", spec: str) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    fds = [worker.fileno() for _, worker in pairs]
    served = serve(
        spec, inherits=fds, PENSTOCK_LINK_FD=",".join(map(str, fds)), PENSTOCK_SCHEME="handoff"
    ).ready()
    for front, worker in pairs:
        worker.close()
        clients = [passed_on(front) for _ in range(2)]
        reported(front, taken=2, ended=0)
        for client in clients:
            client.sendall(GET % b"/")
            assert answer(client) == b"hello"
        reported(front, taken=0, ended=2)
    assert served.stats()["fds"]["channel"] == 3
    # One that is gone for good is no reason to leave the other.
    pairs[0][0].close()
    client = passed_on(pairs[1][0])
    client.sendall(GET % b"/")
    assert answer(client) == b"hello"
    pairs[1][0].close()


@pytest.mark.parametrize("spec", APPS)
def test_a_health_check_over_a_link_is_served_and_not_counted(
    serve: "Serve", spec: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    front, worker = ends
    served = linked(serve, spec, worker)
    probe = passed_on(front, handoff.PROBE)
    probe.sendall(GET % b"/")
    assert answer(probe) == b"hello"
    reported(front, taken=1, ended=0)
    assert served.stats()["series"]["penstock_requests_total"] == {}


@pytest.mark.parametrize("spec", APPS)
def test_a_health_check_over_the_channel_is_served_and_not_counted(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served = shared(serve, spec, port)
    mine, theirs = socket.socketpair()
    with theirs:
        served.tell({"cmd": contract.PROBE}, theirs)
    mine.sendall(GET % b"/")
    assert answer(mine) == b"hello"
    series = served.stats()["series"]
    assert series["penstock_requests_total"] == {}
    assert series["penstock_connections_total"] == {"": 0}


def test_a_ping_is_answered(serve: "Serve") -> None:
    served = serve(DEMO).ready()
    served.tell({"cmd": contract.PING, "seq": 5})
    assert served.hear() == {"cmd": contract.PONG, "seq": 5}


def test_a_descriptor_that_nobody_wants_is_closed(serve: "Serve") -> None:
    served = serve(DEMO).ready()
    before = served.stats()["fds"]
    mine, theirs = socket.socketpair()
    with mine, theirs:
        for command in (contract.PING, contract.INTERNAL + "FUTURE", contract.LISTEN):
            served.tell({"cmd": command}, theirs)
        assert served.stats()["fds"] == before


def test_a_new_socket_is_accepted_from_when_the_old_one_was_shut(serve: "Serve") -> None:
    with socket.socket() as old, socket.socket() as new:
        for sock in (old, new):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(old.getsockname() if sock is new else ("127.0.0.1", 0))
        old.listen()
        served = serve("aio:app", passed=old, PENSTOCK_SCHEME="reuseport").ready()
        assert get(old) == b"hello"
        address = old.getsockname()
        old.shutdown(socket.SHUT_RDWR)
        until(lambda: served.stats()["fds"]["listener"] == 0)
        new.listen()
        served.tell({"cmd": contract.LISTEN}, new)
        assert new.getsockname() == address
        assert get(new) == b"hello"
        assert served.stats()["fds"]["listener"] == 1


@pytest.mark.parametrize("spec", APPS)
def test_who_waits_in_the_queue_when_it_leaves_is_answered(
    serve: "Serve", spec: str, listener: socket.socket
) -> None:
    served = shared(serve, spec, listener)
    assert get(listener) == b"hello"
    served.stop()
    clients = [asked(listener) for _ in range(20)]
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [answer(client) for client in clients] == [b"hello"] * 20
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_who_waits_in_the_link_when_it_leaves_is_answered(
    serve: "Serve", spec: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    front, worker = ends
    served = linked(serve, spec, worker)
    served.stop()
    clients = [passed_on(front) for _ in range(5)]
    for client in clients:
        client.sendall(GET % b"/")
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [answer(client) for client in clients] == [b"hello"] * 5
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_who_was_accepted_and_speaks_a_moment_later_is_answered_still(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served = shared(serve, spec, port)
    served.stop()
    client = connected(port)
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    # Accepted: nobody else would be now.
    until(lambda: queued(port) == 0)
    client.sendall(GET % b"/")
    assert answer(client) == b"hello"
    assert served.exit_status() == 0


def test_whoever_says_nothing_does_not_hold_it_back(serve: "Serve", port: socket.socket) -> None:
    served = shared(serve, "aio:app", port)
    with connected(port) as silent:
        until(lambda: served.stats()["fds"]["client"] == 1)
        served.signal(signal.SIGTERM)
        assert silent.recv(1) == b""
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_it_counts_what_no_front_sees(serve: "Serve", spec: str, port: socket.socket) -> None:
    served = shared(serve, spec, port, slot=3)
    for _ in range(3):
        assert get(port) == b"hello"
    with connected(port) as odd:
        odd.sendall(b"REPORT / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert odd.recv(65536)
        series = served.stats()["series"]
        assert series["penstock_connections_active"] == {"": 1}
    assert series["penstock_connections_total"] == {"": 4}
    assert series["penstock_worker_connections_total"] == {"3": 4}
    requests = dict(series["penstock_requests_total"])
    assert requests.pop("3 GET 200") == 3
    (other,) = requests
    assert other.startswith("3 other ")
    *counts, seconds = series["penstock_request_duration_seconds"]["total"]
    assert (sum(counts), seconds > 0) == (4, True)
    until(lambda: served.stats()["series"]["penstock_connections_active"] == {"": 0})


def test_under_handoff_connections_are_the_fronts_to_count(
    serve: "Serve", ends: tuple[socket.socket, socket.socket]
) -> None:
    front, worker = ends
    served = linked(serve, DEMO, worker)
    client = passed_on(front)
    client.sendall(GET % b"/")
    assert answer(client)
    metrics = served.stats()
    assert set(metrics["series"]) == {
        "penstock_requests_total", "penstock_request_duration_seconds"
    }  # fmt: skip
    assert metrics["fds"]["channel"] == 2


def test_behind_a_front_that_forwards_nothing_is_counted(serve: "Serve") -> None:
    assert serve(DEMO, PENSTOCK_SCHEME="ports").ready().stats()["series"] == {}


@pytest.mark.parametrize("spec", APPS)
@pytest.mark.parametrize("form", ["json", "combined"])
def test_it_writes_the_access_log_itself(
    serve: "Serve", spec: str, form: str, port: socket.socket, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    served = serve(
        spec,
        passed=port,
        PENSTOCK_SCHEME="shared",
        PENSTOCK_SERVICE="web",
        PENSTOCK_SLOT="1",
        PENSTOCK_ACCESS_LOG=f"{form}:{log}",
    ).ready()
    client = connected(port)
    client.sendall(
        b"GET /x?a=%20b HTTP/1.1\r\nHost: x\r\nUser-Agent: me\xff\r\nX-Request-ID: 7\r\n"
        b"Connection: close\r\n\r\n"
    )
    with client:
        while client.recv(65536):
            pass
    until(lambda: b"\n" in log.read_bytes())
    line = log.read_text()
    if form == "combined":
        assert line.startswith("127.0.0.1 - - [")
        assert '"GET /x?a=%20b HTTP/1.1" ' in line
        assert line.endswith(' "-" "me\\xFF"\n')
        return
    found = json.loads(line)
    assert (found["service"], found["worker"], found["client"]) == ("web", "web/1", "127.0.0.1")
    assert (found["method"], found["target"]) == ("GET", "/x?a=%20b")
    assert (found["request_id"], found["ended"]) == ("7", "ok")
    assert found["duration"]["connect"] is None
    assert found["duration"]["total"] >= 0
    assert found["bytes"] > 0

    log.rename(tmp_path / "access.log.1")
    served.tell({"cmd": contract.REOPEN})
    until(log.exists)
    assert get(port) == b"hello"
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert json.loads(log.read_text())["status"] == 200, "the last lines leave before it does"


def test_an_access_log_may_be_a_descriptor(
    serve: "Serve", port: socket.socket, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w+b") as log:
        served = serve(
            DEMO,
            passed=port,
            inherits=[log.fileno()],
            PENSTOCK_SCHEME="shared",
            PENSTOCK_ACCESS_LOG=f"json:{log.fileno()}",
        ).ready()
        assert get(port)
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0
        log.seek(0)
        assert json.loads(log.read())["target"] == "/"


@pytest.mark.parametrize("where", ["json:/nosuch/dir/log", "xml:1", "json:", "json:999"])
def test_an_access_log_that_cannot_be_is_one_line(
    serve: "Serve", port: socket.socket, where: str
) -> None:
    served = serve(DEMO, passed=port, PENSTOCK_SCHEME="shared", PENSTOCK_ACCESS_LOG=where)
    assert served.hear()["reason"].startswith("cannot write the access log: ")
    assert served.exit_status() == contract.EXIT_FAILED


def ask(address: tuple[str, int], text: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE_S)
        client.sendto(text, address)
        return client.recv(65536)


def test_datagrams_are_served_on_a_socket_that_is_given(serve: "Serve") -> None:
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
        served.tell({"cmd": contract.PING, "seq": 1})
        assert served.hear() == {"cmd": contract.PONG, "seq": 1}
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0


def test_by_hand_a_program_for_datagrams_has_the_port(serve: "Serve") -> None:
    served = serve("penstock_worker.demo:udp", supervised=False)
    until(lambda: "\n" in served.stderr())
    found = re.search(r" on udp://127\.0\.0\.1:(\d+) ", served.stderr())
    assert found is not None, served.stderr()
    assert ask(("127.0.0.1", int(found[1])), b"hello\n") == b"hello from worker\n"
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0


def test_a_program_and_a_socket_of_different_kinds_are_one_line(
    serve: "Serve", port: socket.socket
) -> None:
    assert 'set mode = "udp"' in serve("penstock_worker.demo:udp", passed=port).hear()["reason"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert "asyncio.DatagramProtocol is wanted" in serve(DEMO, passed=sock).hear()["reason"]


def test_it_may_have_as_many_descriptors_as_the_system_lets_it(serve: "Serve") -> None:
    served = serve(DEMO).ready()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("spec", APPS)
def test_serving_many_leaves_no_descriptor_behind(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served = shared(serve, spec, port)
    assert get(port) == b"hello"
    before = served.stats()["fds"]
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(port))
        until(lambda: served.stats()["fds"]["client"] == 50)
    until(lambda: served.stats()["fds"] == before)
    assert len([*Path(f"/proc/{served.process.pid}/fd").iterdir()]) == sum(before.values())
