"""Under every scheme all workers serve, are replaced without a loss, and leak nothing.

The program, the port and the supervision are the same. Only the path of a connection to its
worker differs. These tests are for what all schemes promise.
"""

import asyncio
import re
import signal
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.many_clients import (
    AT_ONCE,
    DEMO,
    GET,
    PASSED,
    SCHEMES,
    descriptors,
    failures,
    handoffs,
    request_many,
)

if TYPE_CHECKING:
    from tests.live.conftest import Penstock


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_workers_serve_on_one_port(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=3)
    answers = asyncio.run(request_many(run.address(), 600))
    assert not failures(answers)
    shares = Counter(re.sub(r" \(.*", "", answer.strip()) for answer in answers)
    assert len(shares) == 3, shares
    if scheme in ("ports", "handoff"):
        assert set(shares.values()) == {200}


@pytest.mark.parametrize("scheme", PASSED)
def test_workers_see_the_address_of_the_client(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    wire = run.connect()
    wire.send(b"GET /headers HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'"peer": "127.0.0.1"' in wire.answer().body


@pytest.mark.parametrize("scheme", ["ports", "handoff", "shared"])
def test_a_unix_socket_or_a_port_is_the_same(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, listen="unix:web.sock")
    sock = socket.socket(socket.AF_UNIX)
    with sock:
        sock.settimeout(60)
        sock.connect(str(tmp_path / "web.sock"))
        sock.sendall(GET % b"/")
        assert b"hello from web/" in sock.recv(4096)
    assert run.stop() == 0


@pytest.mark.parametrize("scheme", PASSED)
def test_the_metrics_of_requests_do_not_depend_on_the_scheme(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    sent = 0

    def both_have_served() -> bool:
        # Under `shared` whoever wakes first serves, and one may be the first 50 times.
        nonlocal sent
        answers = asyncio.run(request_many(run.address(), 50))
        assert not failures(answers)
        sent += 50
        run.until(lambda: len(run.log) == sent)
        return len({line["worker"] for line in run.log}) == 2

    run.until(both_have_served)
    run.until(lambda: run.metric("penstock_requests_total", service="web", code="200") == sent)
    assert run.metric("penstock_connections_total", service="web") == sent
    assert run.metric("penstock_worker_connections_total", service="web") == sent
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    assert {line["status"] for line in run.log} == {200}
    assert {line["worker"] for line in run.log} == {"web/0", "web/1"}


@pytest.mark.parametrize("scheme", ["handoff", "shared"])
def test_counters_of_a_worker_that_ended_are_kept_even_if_they_were_never_read(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=1)
    for _ in range(20):
        assert run.get()[0] == 200
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "web/0 exited with status 0" in run.err)
    assert run.metric("penstock_requests_total", service="web") == 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_connection_costs_the_descriptors_that_its_scheme_promises(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    seen: set[str] = set()

    def all_have_served() -> bool:
        # The loop of a process opens one for itself with its first connection.
        seen.update(asyncio.run(request_many(run.address(), AT_ONCE)))
        return len(seen) == 2

    run.until(all_have_served)
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    before = descriptors(run)
    wires = [run.connect() for _ in range(100)]
    for wire in wires:
        wire.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    held = descriptors(run)
    grown = {role: held[role] - before[role] for role in held}
    if scheme == "ports":
        assert run.metric("penstock_fds_per_connection", service="web") > 1
        assert grown["proxy"] >= 100
    else:
        assert grown["proxy"] == 0
        assert grown["workers"] == 100
        assert run.metric("penstock_fds_per_connection", service="web") == 1
    # The client that read the figures may not have disconnected yet.
    run.until(lambda: descriptors(run)["supervisor"] <= before["supervisor"])
    run.hang_up()
    run.until(lambda: descriptors(run)["workers"] <= before["workers"] + 2)


def test_a_relayed_connection_costs_three_descriptors_and_a_port(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, mode="tcp", link="tcp")
    wires = [run.connect() for _ in range(50)]
    for wire in wires:
        wire.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert run.metric("penstock_fds_per_connection", service="web") == 3
    assert run.metric("penstock_ephemeral_ports", service="web") >= 50


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_any_program_that_knows_listen_fds_can_be_a_worker(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "server.py").write_text(
        "import os, socket\n"
        "assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "listener = socket.socket(fileno=3)\n"
        "listener.setblocking(True)\n"
        "while True:\n"
        "    client, _ = listener.accept()\n"
        "    client.recv(4096)\n"
        "    slot = os.environ['PENSTOCK_SLOT'].encode()\n"
        "    body = b'hello from ' + slot\n"
        "    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 12\\r\\n\\r\\n' + body)\n"
        "    client.close()\n"
    )
    run = penstock(command=["python3", "server.py"], scheme=scheme, workers=2)
    answers = asyncio.run(request_many(run.address(), 400))
    assert not failures(answers)
    assert len(set(answers)) == 2


def test_a_program_that_ignores_listen_fds_is_named_in_an_error(
    tmp_path: Path, penstock: "Penstock"
) -> None:
    with pytest.raises(AssertionError, match="did not take the socket that it was given"):
        penstock(
            command=["python3", "-m", "http.server", "--bind", "127.0.0.1", "0"],
            scheme="shared",
            timeouts={"start": "3s"},
        )


def test_a_worker_that_fails_its_checks_has_its_socket_closed_until_it_passes(
    penstock: "Penstock",
) -> None:
    run = penstock(
        app=DEMO,
        scheme="reuseport",
        workers=2,
        access_log="off",
        health={"path": "/healthz", "interval": "100ms", "timeout": "200ms", "fall": 2},
    )
    stuck = psutil.Process(run.workers()[1]["pid"])
    stuck.send_signal(signal.SIGSTOP)
    try:
        run.until(lambda: "web/1: its socket is closed" in run.err)
        answers = asyncio.run(request_many(run.address(), 100))
        assert not failures(answers)
        assert all("web/0" in answer for answer in answers)
    finally:
        stuck.send_signal(signal.SIGCONT)
    run.until(lambda: all(worker["health"] == "up" for worker in run.workers()))

    def both_serve() -> bool:
        answers = asyncio.run(request_many(run.address(), 100))
        assert not failures(answers)
        return any("web/1" in answer for answer in answers)

    run.until(both_serve)


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_datagrams_are_answered_by_every_worker(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app="penstock_worker.demo:udp", mode="udp", scheme=scheme, workers=2)
    match = re.search(r"^web on (?:udp://)?([\d.]+):(\d+)", run.err, re.MULTILINE)
    assert match
    seen = set()

    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(60)
            sock.connect((match[1], int(match[2])))
            sock.send(b"hello\n")
            seen.add(sock.recv(4096))
        return len(seen) == 2

    run.until(ask)
    assert seen == {b"hello from web/0\n", b"hello from web/1\n"}


def test_a_client_that_resets_while_it_is_handed_over_affects_no_other(
    penstock: "Penstock",
) -> None:
    run = penstock(app=DEMO, scheme="handoff", access_log="off")
    for _ in range(200):
        sock = socket.create_connection(run.address())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert not failures(asyncio.run(request_many(run.address(), 100)))
    run.until(lambda: run.metric("penstock_handoffs_in_flight") == 0)
    assert handoffs(run, "lost") == 0


def test_messages_of_a_program_are_counted_as_events(penstock: "Penstock", program: str) -> None:
    run = penstock(app=program, scheme="handoff")
    for _ in range(4):
        assert run.get("/say")[1] == "said"
    counted: dict[str, Any] = {"role": "worker", "service": "web"}
    run.until(lambda: run.metric("penstock_child_events_total", event="message", **counted) == 4)
    assert run.metric("penstock_child_events_total", event="fork", **counted) == 2
    assert run.metric("penstock_child_events_total", event="listening", **counted) == 2
