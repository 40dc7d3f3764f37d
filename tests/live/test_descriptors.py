"""A front that runs out of descriptors or connections waits, says no in the end, and recovers."""

import resource
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Cluster, Penstock, Wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HELD = 2
"""At a time: a front looks at its limit once a tick."""


def hold(run: "Cluster", most: int = 2000) -> list["Wire"]:
    """Connections that ask for half of something, until the front accepts no more."""
    held: list[Wire] = []
    while run.metric("penstock_accepting", service="web"):
        assert len(held) < most
        for _ in range(HELD):
            held.append(run.connect())
            held[-1].send(GET[:10])
        run.until(
            lambda: (
                not run.metric("penstock_accepting", service="web")
                or run.metric("penstock_connections_active", service="web") >= len(held)
            )
        )
    return held


def answer_to_who_waits(run: "Cluster") -> bytes:
    """What one is told that found no room; an end that is no reset."""
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
def test_out_of_descriptors_it_says_no_and_when_there_are_some_it_goes_on(
    penstock: "Penstock", keys: dict[str, object], answer: bytes
) -> None:
    run = penstock(
        app="penstock_worker.demo:app",
        workers=1,
        timeouts={"queue": "500ms", **({"head": "60s"} if keys.get("mode") == "http" else {})},
        limits={"connections_per_client": 0},
        health={"interval": "100ms"},
        **keys,
    )
    front = run.front
    if "max_connections" not in keys:
        # While it runs, and from outside.
        open_now = front.num_fds()
        resource.prlimit(front.pid, resource.RLIMIT_NOFILE, (open_now + 80, open_now + 80))
    hold(run)
    assert run.metric("penstock_accept_pauses_total", service="web") >= 1
    assert answer_to_who_waits(run).startswith(answer)
    assert run.metric("penstock_rejected_total", service="web") >= 1
    # Health checks go on meanwhile.
    checks = run.metric("penstock_health_checks_total", service="web", result="ok")
    run.until(
        lambda: (
            run.metric("penstock_health_checks_total", service="web", result="ok") >= checks + 10
        )
    )
    assert run.workers("web")[0]["standing"] == "up"
    run.hang_up()
    run.until(lambda: run.metric("penstock_accepting", service="web"))
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    assert run.get()[0] == 200


def test_one_client_cannot_have_all_connections(penstock: "Penstock") -> None:
    run = penstock(app="penstock_worker.demo:app", workers=1, limits={"connections_per_client": 20})
    held = [run.connect() for _ in range(20)]
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 20)
    assert answer_to_who_waits(run).startswith(b"HTTP/1.1 429 ")
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
