"""Workers tell WebSockets that the end comes, so no stop and no roll-out waits for its time-out."""

import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.live import stopping_programs
from tests.support.live.heads import request
from tests.support.live.many_clients import SCHEMES, pids, settled
from tests.support.live.stopping_programs import KINDS
from tests.support.live.websocket import WebSocket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock

NEVER = {"stop": "1h"}
"""No test waits for it: what ends has not waited for the time to be over."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_websocket_is_closed_with_1001_when_the_run_stops(
    penstock: "Penstock", tmp_path: "Path", scheme: str, kind: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app=f"{kind}:app", scheme=scheme, workers=2, timeouts=NEVER)
    websocket = WebSocket(run)
    websocket.echo(b"hello")
    run.look()
    run.process.terminate()
    assert websocket.close_code() == 1001
    websocket.answer_close(1001)
    assert run.ended() == 0
    assert {path.name for path in tmp_path.glob("cleaned-*")} == {"cleaned-0", "cleaned-1"}
    assert "cut" not in run.said
    assert "killed" not in run.said
    (entry,) = (line for line in run.log if line["target"] == "/ws")
    assert (entry["status"], entry["termination"]) == (101, "ok")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_websocket_is_closed_with_1001_when_its_worker_is_replaced(
    penstock: "Penstock", tmp_path: "Path", scheme: str, kind: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app=f"{kind}:app", scheme=scheme, workers=1, timeouts=NEVER)
    before = pids(run)
    websocket = WebSocket(run)
    websocket.echo(b"hello")
    run.process.send_signal(signal.SIGHUP)
    assert websocket.close_code() == 1001
    websocket.answer_close(1001)
    settled(run, 1, before)
    run.until(lambda: (tmp_path / "cleaned-0").exists())
    WebSocket(run).echo(b"again")


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_served_while_websockets_are_told_of_the_end(
    penstock: "Penstock", tmp_path: "Path", kind: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app=f"{kind}:app", workers=1, timeouts=NEVER)
    websocket, slow = WebSocket(run), run.connect()
    slow.send(request("/slow"))
    run.until(lambda: (tmp_path / "begun-slow").exists())
    run.look()
    run.process.terminate()
    assert websocket.close_code() == 1001
    # The worker has begun its farewell, and goes on serving what comes over open connections.
    assert run.workers()[0]["pid"]
    assert not (tmp_path / "cleaned-0").exists()
    (tmp_path / "go-on").touch()
    assert slow.answer().status == 200
    websocket.answer_close(1001)
    assert run.ended() == 0
    assert (tmp_path / "cleaned-0").exists()
