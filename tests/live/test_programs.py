"""Programs that never heard of us run as they are, and signals mean what people expect."""

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
def test_a_node_server_is_balanced_as_it_is(penstock: "Penstock") -> None:
    run = penstock(command=["node", "-e", SERVER], workers=2)
    assert Counter(run.get() for _ in range(4)) == {(200, "web/0"): 2, (200, "web/1"): 2}


def test_a_hangup_without_a_terminal_stops_nobody(penstock: "Penstock") -> None:
    run = penstock(app="penstock_worker.demo:app")
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "HUP is ignored" in run.err)
    assert run.get("/healthz")[0] == 200
