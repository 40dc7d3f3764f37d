"""Several proxies serve like one, and a killed proxy costs only its own clients.

One run of two proxies has a service of every kind that has a proxy. The kernel knows which
process has which end of a connection.
Covers `messages`, `runtime/commands`, `runtime/process` and `runtime/stats`.
"""

import json
import signal
import socket
import threading
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.live.conftest import Launch, Penstock
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

APP = {"app": "penstock_worker.demo:app", "access_log": "off"}
KINDS = ("web", "raw", "hand")
RELAYED = ("web", "raw")
MANY = 32
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def shared_run(launch: "Launch") -> "Cluster":
    return launch(
        "--proxies", "2", web={**APP, "access_log": "./access.log"},
        raw={**APP, "mode": "tcp", "workers": 1}, hand={**APP, "scheme": "handoff"},
    )  # fmt: skip


@pytest.fixture
def run(shared_run: "Cluster") -> "Iterator[Cluster]":
    yield shared_run
    shared_run.hang_up()
    shared_run.until(lambda: shared_run.metric("penstock_connections_active") == 0)


def connected(run: "Cluster", name: str, count: int = MANY) -> "list[Wire]":
    """So many clients, each of which was answered once."""
    wires = [run.connect(name) for _ in range(count)]
    for wire in wires:
        wire.send(GET)
    assert [wire.answer().status for wire in wires] == [200] * count
    return wires


def whose(run: "Cluster", name: str, proxies: list[psutil.Process]) -> list[set[int]]:
    """The clients of each proxy, by their port."""
    _, port = run.address(name)
    return [
        {
            one.raddr.port
            for one in proxy.net_connections("tcp")
            if one.raddr and one.laddr.port == port
        }
        for proxy in proxies
    ]


def port_of(wire: "Wire") -> int:
    port: int = wire.sock.getsockname()[1]
    return port


def lives(wire: "Wire") -> bool:
    try:
        return wire.ask(GET).status == 200
    except (OSError, EOFError):
        return False


def replaced(run: "Cluster", slot: int, before: psutil.Process) -> None:
    """Wait until another proxy is in this slot, and everything is as it was."""

    def is_back() -> bool:
        proxy = run.status()["proxies"][slot]
        return proxy["pid"] not in (None, before.pid) and proxy["state"] == "ready"

    run.until(is_back)
    run.until(lambda: run.get("/readyz", "admin")[0] == 200)


@pytest.mark.parametrize("name", KINDS)
def test_both_proxies_accept_clients_and_their_metrics_add_up(run: "Cluster", name: str) -> None:
    before = run.metric("penstock_connections_total", service=name)
    wires = connected(run, name)
    assert run.metric("penstock_connections_total", service=name) == before + MANY
    assert run.metric("penstock_connections_active", service=name) == MANY
    assert sum(worker["active"] for worker in run.workers(name)) == MANY * (name != "web")
    shares = [run.metric("penstock_fds", role="proxy", slot=str(k), kind="client") for k in (0, 1)]
    if name in RELAYED:
        assert sum(shares) == MANY
        assert all(shares)
        held = whose(run, name, run.proxies)
        assert held[0] | held[1] == {port_of(wire) for wire in wires}
    else:
        assert shares == [0, 0], "passed on, and the workers' alone"


def test_all_proxies_log_into_one_file_and_request_ids_are_unique(run: "Cluster") -> None:
    before = len(run.log)
    for wire in connected(run, "web"):
        assert wire.ask(GET).status == 200
    run.until(lambda: len(run.log) == before + 2 * MANY)
    assert len({line["request_id"] for line in run.log}) == len(run.log)


def test_each_proxy_has_its_own_row_in_the_status(run: "Cluster") -> None:
    proxies = run.status()["proxies"]
    assert [(proxy["slot"], proxy["state"]) for proxy in proxies] == [(0, "ready"), (1, "ready")]
    sockets = run.status()["services"]["web"]["sockets"]
    assert [one["slot"] for one in sockets] == [0, 1]
    assert run.metric("penstock_child_state", role="proxy", state="ready") == 2


@pytest.mark.parametrize("name", KINDS)
def test_when_a_proxy_is_killed_only_its_own_clients_are_cut(run: "Cluster", name: str) -> None:
    wires = connected(run, name)
    killed, other = run.proxies
    cut, kept = whose(run, name, [killed, other])
    counted = run.metric("penstock_connections_total", service=name)
    killed.kill()
    # A client that connects now is not refused, whichever proxy the kernel chooses.
    connected(run, name)
    for wire in wires:
        assert lives(wire) is (port_of(wire) not in cut)
    assert bool(cut) is bool(kept) is (name in RELAYED)
    replaced(run, 0, killed)
    assert run.metric("penstock_connections_total", service=name) >= counted
    connected(run, name)


@pytest.mark.parametrize("name", KINDS)
def test_a_client_in_the_backlog_of_a_killed_proxy_is_served(run: "Cluster", name: str) -> None:
    stuck = run.proxies[1]
    stuck.suspend()
    wires = [run.connect(name) for _ in range(MANY)]
    for wire in wires:
        wire.send(GET)
    # As far as the test can see, about half of them wait in the backlog of the stopped proxy.
    stuck.kill()
    assert [wire.answer().status for wire in wires] == [200] * MANY
    replaced(run, 1, stuck)


def test_a_stopped_proxy_loses_its_share_of_clients_until_it_answers(run: "Cluster") -> None:
    stuck = run.proxies[1]
    stuck.suspend()
    try:
        wires = connected(run, "web")
        # A thread writes the log, and may be later than the clients' answers.
        run.until(lambda: "proxy/1 does not answer; the others take its new clients" in run.err)
        assert whose(run, "web", [run.proxies[0]]) == [{port_of(wire) for wire in wires}]
        assert run.get("/readyz", "admin")[0] == 200
        assert [proxy["covered"] for proxy in run.status()["proxies"]] == [False, True]
    finally:
        stuck.resume()
    run.until(lambda: "proxy/1 answers again" in run.err)
    assert all(map(lives, wires))
    connected(run, "web")
    assert all(whose(run, "web", run.proxies))


def test_connections_that_a_killed_worker_had_not_taken_survive_a_killed_proxy_too(
    run: "Cluster",
) -> None:
    proxy, worker = run.proxies[0], psutil.Process(run.workers("hand")[0]["pid"])
    worker.suspend()
    wires = [run.connect("hand") for _ in range(MANY // 2)]
    for wire in wires:
        wire.send(GET)
    run.until(lambda: run.metric("penstock_handoffs_in_flight", service="hand") > 0)
    proxy.kill()
    worker.kill()
    assert [wire.answer().status for wire in wires] == [200] * len(wires)
    assert run.metric("penstock_handoffs_total", result="lost") == 0
    replaced(run, 0, proxy)
    run.until(lambda: all(worker["health"] == "up" for worker in run.workers()))


class Load:
    """Clients that send requests on kept connections until `end` is called."""

    def __init__(self, run: "Cluster", *names: str) -> None:
        self.seen: Counter[str] = Counter()
        self._run = run
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in names * 4]
        for thread in self._threads:
            thread.start()

    def _ask(self, name: str) -> None:
        while not self._ends.is_set():
            with closing(socket.create_connection(self._run.address(name), timeout=60)) as sock:
                while not self._ends.is_set() and self._once(sock):
                    self.seen["answered"] += 1

    def _once(self, sock: socket.socket) -> bool:
        """False if it was the last time on this connection."""
        try:
            sock.sendall(GET)
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data.startswith(b"HTTP/1.1 200"):
            self.seen[repr(data[:40]) if data else "cut"] += 1
            return False
        if b"\r\nconnection: close\r\n" not in data.lower():
            return True
        self.seen["answered"] += 1
        return False

    def more(self) -> None:
        wanted = self.seen["answered"] + 200
        self._run.until(lambda: self.seen["answered"] >= wanted)

    def end(self) -> Counter[str]:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)
        return self.seen


@pytest.mark.parametrize("name", ["web", "hand"])
def test_under_load_a_killed_proxy_costs_each_of_its_clients_one_answer(
    run: "Cluster", name: str
) -> None:
    load = Load(run, name, name)
    load.more()
    killed = run.proxies[0]
    (carried,) = whose(run, name, [killed])
    killed.kill()
    load.more()
    replaced(run, 0, killed)
    load.more()
    seen = load.end()
    # A client that could not connect would have ended its thread, and the test with it.
    assert set(seen) <= {"answered", "cut"}
    assert seen["cut"] == len(carried)


def test_workers_are_replaced_without_a_loss(run: "Cluster") -> None:
    before = {worker["pid"] for worker in run.workers()}
    load = Load(run, "web", "hand")
    load.more()
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "has succeeded" in run.err)
    load.more()
    assert set(load.end()) == {"answered"}
    assert not before & {worker["pid"] for worker in run.workers()}


def test_all_proxies_finish_their_requests_before_they_end(penstock: "Penstock") -> None:
    run = penstock(
        "--proxies", "2",
        services={
            "web": {**APP, "workers": 1},
            "raw": {**APP, "workers": 1, "mode": "tcp"},
            "hand": {**APP, "workers": 1, "scheme": "handoff"},
        },
    )  # fmt: skip
    wires = [run.connect(name) for name in KINDS for _ in range(8)]
    for wire in wires:
        wire.send(b"GET /sleep?s=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    run.until(lambda: run.metric("penstock_connections_active") == len(wires))
    assert all(sum(map(len, whose(run, name, run.proxies))) == 8 for name in RELAYED)
    run.process.terminate()
    assert [wire.answer().status for wire in wires] == [200] * len(wires)
    run.hang_up()
    assert run.ended() == 0


def test_a_unix_socket_is_served_by_all_proxies(penstock: "Penstock") -> None:
    path = "./web.sock"
    run = penstock("--proxies", "2", services={"web": {**APP, "listen": f"unix:{path}"}})
    where = str(run.folder / path)

    def ask() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(where)
            sock.sendall(GET)
            return sock.recv(1 << 16).decode()

    assert all(ask().startswith("HTTP/1.1 200") for _ in range(8))
    proxy = run.proxies[0]
    proxy.kill()
    assert all(ask().startswith("HTTP/1.1 200") for _ in range(8))
    replaced(run, 0, proxy)
    assert (
        json.loads(run.get("/status", "admin")[1])["services"]["web"]["sockets"][0]["slot"] is None
    )
