"""Unchanged programs run as workers, and signals have their usual meaning."""

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock

SERVER = """\
require('http').createServer((request, response) => {
  response.end(`${process.env.PENSTOCK_SERVICE}/${process.env.NODE_APP_INSTANCE}`);
}).listen(process.env.PORT, process.env.HOST);
"""


@pytest.mark.needs("node")
def test_an_unchanged_node_server_is_balanced(penstock: "Penstock") -> None:
    run = penstock(command=["node", "-e", SERVER], workers=2)
    assert Counter(run.get() for _ in range(4)) == {(200, "web/0"): 2, (200, "web/1"): 2}


@pytest.mark.needs("node")
@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_a_node_server_takes_the_socket_that_it_is_given(penstock: "Penstock", scheme: str) -> None:
    program = SERVER.replace("listen(process.env.PORT, process.env.HOST)", "listen({fd: 3})")
    run = penstock(command=["node", "-e", program], workers=2, scheme=scheme)
    seen: set[tuple[int, str]] = set()

    def both_answer() -> bool:
        seen.add(run.get())
        return len(seen) == 2

    run.until(both_answer)
    assert seen == {(200, "web/0"), (200, "web/1")}


def test_a_hangup_without_a_terminal_replaces_workers_and_does_not_end_the_run(
    penstock: "Penstock",
) -> None:
    run = penstock(app="penstock_worker.demo:app")
    before = {worker["pid"] for worker in run.workers()}
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "has succeeded" in run.err)
    assert run.get("/healthz")[0] == 200
    assert not before & {worker["pid"] for worker in run.workers()}
