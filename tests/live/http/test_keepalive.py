"""Clients that keep their connections lose no request while workers are replaced."""

import http.client
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

AIOHTTP = "penstock_worker.demo:app"
ASGI = "program:app"
PROGRAM = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    head = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"hello"})
"""


class Client(threading.Thread):
    """Sends requests on one connection, and opens another only after `Connection: close`."""

    def __init__(self, run: "Cluster", enough: threading.Event) -> None:
        super().__init__()
        self._address = run.address()
        self._enough = enough
        self.failures: list[str] = []
        self.reopened = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        # It reopens by itself after an answer that was marked as the last one.
        connection.auto_open = 1
        while not self._enough.is_set():
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if response.status != 200:
                self.failures.append(str(response.status))
            self.reopened += response.getheader("Connection") == "close"
        with suppress(OSError):
            connection.close()


@pytest.mark.parametrize("app", [AIOHTTP, ASGI], ids=["aiohttp", "asgi"])
@pytest.mark.parametrize(
    "keys",
    [{}, {"mode": "tcp"}, {"scheme": "handoff"}, {"scheme": "shared"}, {"scheme": "reuseport"}],
    ids=["http", "tcp", "handoff", "shared", "reuseport"],
)
def test_a_replaced_worker_marks_its_last_answer_with_connection_close(
    penstock: "Penstock", tmp_path: Any, keys: dict[str, str], app: str
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    run = penstock(app=app, workers=2, **{"access_log": "off", **keys})
    enough = threading.Event()
    clients = [Client(run, enough) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        run.process.send_signal(signal.SIGHUP)
        run.until(lambda: "has succeeded" in run.err)
        run.until(lambda: run.err.count("exited with status 0") >= 2)
    finally:
        enough.set()
        for client in clients:
            client.join()
    assert [failure for client in clients for failure in client.failures] == []
    if keys:
        assert sum(client.reopened for client in clients) >= 1
