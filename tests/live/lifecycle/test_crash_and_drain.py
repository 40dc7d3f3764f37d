"""A killed process refuses no connection, and a process that stops finishes its requests first."""

import os
import signal
import socket
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def silent(wire: "Wire") -> None:
    """Reads everything and never answers."""
    wire.rest()


# -- processes that die


def load(run: "Cluster", stop: threading.Event, report: "Callable[[str], None]") -> None:
    """A client that asks and asks, and begins again with a new connection when it was cut."""
    while not stop.is_set():
        try:
            sock = socket.create_connection(run.address(), timeout=60)
        except OSError as error:
            report(f"connect: {error}")
            continue
        with sock:
            try:
                for _ in range(50):
                    sock.sendall(GET)
                    data = b""
                    while not data.endswith(b")\n"):
                        more = sock.recv(65536)
                        if not more:
                            raise ConnectionResetError("cut")
                        data += more
                    report(data[9:12].decode())
            except OSError:
                report("cut")


class Load:
    """Four clients that never stop; `results` counts what became of their requests."""

    def __init__(self, run: "Cluster") -> None:
        self.results = Counter[str]()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=load, args=(run, self._stop, self._report)) for _ in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _report(self, what: str) -> None:
        with self._lock:
            self.results[what] += 1

    def more(self, run: "Cluster", count: int = 200) -> None:
        """Wait until so many more were answered."""
        enough = self.results["200"] + count
        run.until(lambda: self.results["200"] >= enough)

    def end(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.results


def pid_of(run: "Cluster", slot: int) -> int | None:
    pid: int | None = run.workers()[slot]["pid"]
    return pid


def replaced(run: "Cluster", pid: "Callable[[], int | None]") -> None:
    """Kill a process, and wait for the one that takes its place."""
    before = pid()
    assert before
    os.kill(before, signal.SIGKILL)
    run.until(lambda: pid() not in (None, before))


DEMO = {"app": "penstock_worker.demo:app", "access_log": "off"}


def test_a_worker_killed_under_load_fails_no_get(penstock: "Penstock") -> None:
    run = penstock(**DEMO, restart={"backoff": "50ms", "max_restarts": 20})
    load = Load(run)
    try:
        for slot in (0, 1, 0):
            load.more(run)
            replaced(run, partial(pid_of, run, slot))
            run.until(lambda: all(worker["health"] == "up" for worker in run.workers()))
            load.more(run)
    finally:
        results = load.end()
    assert set(results) == {"200"}
    assert sum(sum(worker["restarts"].values()) for worker in run.workers()) == 3


def test_a_proxy_killed_under_load_refuses_no_connect_and_is_restarted(
    penstock: "Penstock",
) -> None:
    run = penstock(**DEMO)
    load = Load(run)
    try:
        for _ in range(3):
            load.more(run)
            replaced(run, lambda: run.status()["proxies"][0]["pid"])
            load.more(run)
    finally:
        results = load.end()
    # Requests in progress were cut and sent again; no connect was refused.
    assert set(results) <= {"200", "cut"}


def test_nothing_survives_a_supervisor_killed_under_load(penstock: "Penstock") -> None:
    run = penstock(**DEMO)
    load = Load(run)
    try:
        load.more(run)
        # A proxy, a guardian and two workers.
        assert len(run.look()) == 4
        run.process.kill()
        assert run.ended() == -signal.SIGKILL
    finally:
        load.end()


# -- an orderly end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_progress_are_finished_before_the_end(
    penstock: "Penstock", origin: "Worker", number: int
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        asked.set()
        assert go_on.wait(60)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsl")
        wire.send(b"owly")

    run = penstock("--to", origin(answer).address)
    address = run.address()
    idle, busy = run.connect(), run.connect()
    busy.send(GET)
    assert asked.wait(60)
    run.look()
    run.process.send_signal(number)
    # The listener is closed, and so are idle connections.
    run.until(lambda: is_refused(address))
    assert idle.is_ended()
    go_on.set()
    answered = busy.answer()
    assert (answered.status, answered.body, answered["Connection"]) == (200, b"slowly", "close")
    assert busy.is_ended()
    assert run.ended() == 0


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except OSError:
        return True
    return False


def test_a_second_signal_ends_the_run_at_once(penstock: "Penstock", origin: "Worker") -> None:
    asked = threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        asked.set()
        wire.rest()

    run = penstock("--to", origin(answer).address)
    wire = run.connect()
    wire.send(GET)
    assert asked.wait(60)
    run.look()
    run.process.terminate()
    run.until(lambda: "stopping" in run.err)
    run.process.terminate()
    assert wire.answer().status == 503
    assert wire.is_ended()
    assert run.ended() == 0


def test_tcp_connections_are_finished_before_the_end(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        while data := wire.sock.recv(1000):
            wire.send(data)

    run = penstock("--to", origin(answer).address, mode="tcp")
    address = run.address()
    wire = run.connect()
    wire.send(b"one")
    assert wire.exactly(3) == b"one"
    run.look()
    run.process.terminate()
    run.until(lambda: is_refused(address))
    wire.send(b"two")
    assert wire.exactly(3) == b"two"
    wire.close()
    assert run.ended() == 0


def test_a_connection_that_does_not_finish_in_time_is_cut(
    penstock: "Penstock", origin: "Worker"
) -> None:
    run = penstock("--to", origin(silent).address, mode="tcp", timeouts={"stop": "300ms"})
    wire = run.connect()
    wire.send(b"I stay")
    run.until(lambda: run.workers()[0]["active"] == 1)
    assert run.stop() == 0
    assert wire.is_ended()
