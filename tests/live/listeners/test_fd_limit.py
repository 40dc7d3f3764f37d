"""Without descriptors or connections a proxy waits, then refuses clients, and recovers.

Covers `process/rlimits`.
"""

import os
import resource
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPLOAD, REST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", b"x"
"""A request that is served as long as its client likes."""
HELD = 2
"""At a time: a proxy looks at its limit once a tick."""
WAITING = 5
LOOKS = 25


def hold(run: "Cluster", most: int = 2000) -> list["Wire"]:
    """Connections with a request that is served, until the proxy accepts no more."""
    held: list[Wire] = []
    while run.metric("penstock_accepting", service="web"):
        assert len(held) < most
        for _ in range(HELD):
            held.append(run.connect())
            held[-1].send(UPLOAD)
        run.until(
            lambda: (
                not run.metric("penstock_accepting", service="web")
                or run.metric("penstock_connections_active", service="web") >= len(held)
            )
        )
    return held


def answer_to_waiting_client(run: "Cluster") -> bytes:
    """What a client without room gets. It ends without a reset."""
    wire = run.connect()
    wire.send(GET)
    return wire.rest()


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        ({"mode": "http"}, b"HTTP/1.1 503 "),
        ({"mode": "tcp"}, b""),
        ({"scheme": "handoff", "max_connections": 60}, b""),
    ],
    ids=["http", "tcp", "handoff"],
)
def test_without_descriptors_clients_are_refused_and_with_some_served_again(
    penstock: "Penstock", keys: dict[str, object], answer: bytes
) -> None:
    run = penstock(
        app="penstock_worker.demo:app",
        workers=1,
        timeouts={"queue": "500ms", **({"body": "60s"} if keys.get("mode") == "http" else {})},
        limits={"connections_per_client": 0},
        health={"interval": "100ms"},
        **keys,
    )
    proxy = run.proxy
    if "max_connections" not in keys:
        # While it runs, and from outside.
        open_now = proxy.num_fds()
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (open_now + 80, open_now + 80))
    hold(run)
    assert run.metric("penstock_accept_pauses_total", service="web") >= 1
    assert answer_to_waiting_client(run).startswith(answer)
    assert run.metric("penstock_rejected_total", service="web") >= 1
    # Health checks go on meanwhile.
    checks = run.metric("penstock_health_checks_total", service="web", result="ok")
    run.until(
        lambda: (
            run.metric("penstock_health_checks_total", service="web", result="ok") >= checks + 10
        )
    )
    assert run.workers("web")[0]["health"] == "up"
    run.hang_up()
    run.until(lambda: run.metric("penstock_accepting", service="web"))
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    assert run.get()[0] == 200


def test_a_proxy_without_descriptors_waits_without_a_busy_loop_and_loses_no_client(
    penstock: "Penstock",
) -> None:
    run = penstock(
        app="penstock_worker.demo:app",
        workers=1,
        timeouts={"queue": "60s", "body": "60s"},
        limits={"connections_per_client": 0},
    )
    proxy = run.proxy
    usual = cost_of_looking(run, proxy)
    before = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    few = proxy.num_fds() + 80
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (few, before[1]))
    held = hold(run)
    waiting = [run.connect() for _ in range(WAITING)]
    for wire in waiting:
        wire.send(GET)
    assert cost_of_looking(run, proxy) < 5 * usual
    assert run.metric("penstock_accepting", service="web") == 0
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, before)
    # Accepted or not, each client has one answer.
    for wire in waiting:
        assert wire.answer().status == 200
    for wire in held:
        wire.send(REST)
        assert wire.answer().status == 200
    assert run.metric("penstock_rejected_total") == 0


def test_a_worker_without_descriptors_waits_without_a_busy_loop(penstock: "Penstock") -> None:
    run = penstock(app="penstock_worker.demo:app", workers=1, scheme="shared")
    worker = psutil.Process(run.workers()[0]["pid"])
    usual = cost_of_looking(run, worker)
    before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    few = worker.num_fds() + 10
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (few, before[1]))
    came: list[Wire] = []
    while "Too many open files" not in run.err:
        assert len(came) < 2000
        came.append(run.connect())
        # Without a request it would be ended to make room for others.
        came[-1].send(UPLOAD)
    assert cost_of_looking(run, worker) < 5 * usual
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
    for wire in came:
        wire.send(REST)
    # A client that has waited for two seconds is refused.
    statuses = {wire.answer().status for wire in came}
    assert 200 in statuses <= {200, 503}
    assert run.get()[0] == 200


def cost_of_looking(run: "Cluster", process: psutil.Process) -> float:
    """Processor time in nanoseconds that a process needs for each look at the metrics.

    It does not grow while a process waits; one that asks in vain again and again needs all
    that there is between two looks.
    """
    before = on_processor(process.pid)
    for _ in range(LOOKS):
        run.metric("penstock_build_info")
    return (on_processor(process.pid) - before) / LOOKS


def on_processor(pid: int) -> int:
    """Of all its threads, by the kernel's scheduler."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def test_one_client_cannot_have_all_connections(penstock: "Penstock") -> None:
    run = penstock(app="penstock_worker.demo:app", workers=1, limits={"connections_per_client": 20})
    held = [run.connect() for _ in range(20)]
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 20)
    assert answer_to_waiting_client(run).startswith(b"HTTP/1.1 429 ")
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.settimeout(60)
        other.connect(run.address())
        other.sendall(GET)
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
    held.pop().close()
    run.until(lambda: run.metric("penstock_connections_active", service="web") < 20)
    with suppress(ConnectionResetError):
        assert run.get()[0] == 200


def test_no_worker_is_given_up_because_the_supervisor_lacks_descriptors(
    penstock: "Penstock", tmp_path: Path
) -> None:
    # In a directory of its own: who looks for all runs would be one connection too many.
    run = penstock(
        "--run-dir",
        str(tmp_path / "run"),
        app="penstock_worker.demo:app",
        workers=2,
        restart={"max_restarts": 1, "backoff": "20ms", "backoff_max": "50ms"},
    )
    worker = run.workers("web")[0]["pid"]
    limits = resource.prlimit(run.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(run.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    os.kill(worker, signal.SIGKILL)
    run.until(lambda: run.err.count("Too many open files; trying again in ") >= 3)
    resource.prlimit(run.process.pid, resource.RLIMIT_NOFILE, limits)
    run.until(lambda: all(one["health"] == "up" for one in run.workers("web")))
    assert "is in a crash loop" not in run.err
