"""What has not ended when the time of a stop is over is cut, so that clients and the log see it.

Covers `runtime/cuts`, `net/abortive_close` and `servers/unavailable`.
"""

import json
import os
import re
import signal
import socket
import ssl
import threading
from collections import Counter
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from tests.support.live import stopping_programs
from tests.support.live.heads import request
from tests.support.live.many_clients import PASSED, SCHEMES, pids, settled
from tests.support.live.stopping_programs import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

SHORT = {"stop": "4s"}
NEVER = {"stop": "1h"}
REASON = "stop_timeout"


def begin(run: "Cluster", path: str, minor: int = 1) -> "Wire":
    """Send a request, and wait until its handler runs."""
    wire = run.connect()
    wire.send(request(path, minor=minor))
    begun = run.folder / f"begun-{path[1:]}"
    run.until(begun.exists)
    run.look()
    return wire


def entry(run: "Cluster", path: str) -> dict[str, Any]:
    (found,) = (line for line in run.log if line["target"] == path)
    return found


def cleaned(run: "Cluster") -> int:
    return len(list(run.folder.glob("cleaned-*")))


# -- the end of the whole run


def of_each_kind(
    penstock: "Penstock", folder: "Path", schemes: "Sequence[str]", workers: int
) -> tuple["Cluster", list[str]]:
    """One run that has a service for each scheme and each kind of program, and their names: all
    of them wait for the same deadline. Each is in a folder of its own, which has its name."""
    services = {}
    for scheme, kind in product(schemes, KINDS):
        name = f"{scheme}_{kind}"
        (folder / name).mkdir()
        stopping_programs.write(folder / name)
        services[name] = {
            "app": f"{kind}:app", "directory": f"./{name}", "scheme": scheme, "workers": workers,
            "timeouts": SHORT, "access_log": f"./{name}/access.log",
        }  # fmt: skip
    return penstock(services=services), list(services)


def begin_at(run: "Cluster", name: str, path: str, minor: int = 1) -> "Wire":
    """Send a request to a service, and wait until its handler runs."""
    wire = run.connect(name)
    wire.send(request(path, minor=minor))
    begun = run.folder / name / f"begun-{path[1:]}"
    run.until(begun.exists)
    run.look()
    return wire


def outcome(run: "Cluster", name: str, path: str) -> tuple[int, str, int]:
    """Status and termination in the log of a service, and how many of its workers cleaned up."""
    text = (run.folder / name / "access.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (found,) = (line for line in lines if line["target"] == path)
    return found["status"], found["termination"], len(list(run.folder.glob(f"{name}/cleaned-*")))


def test_an_http_1_0_client_sees_a_reset_and_the_clean_up_runs(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    run, names = of_each_kind(penstock, tmp_path, SCHEMES, workers=2)
    wires = {name: begin_at(run, name, "/stream", minor=0) for name in names}
    for wire in wires.values():
        assert b"piece" in wire.until(b"piece")
    run.process.terminate()
    assert {name: wire.is_reset() for name, wire in wires.items()} == dict.fromkeys(names, True)
    assert run.ended() == 0
    assert f"stopped; requests and connections that were cut: {len(names)}" in run.said
    assert ": 503 " not in run.said
    # The proxy tells what it has cut for all of its services, a worker what it had itself.
    told: Counter[str] = Counter()
    for who, count in re.findall(r"(\w+)/\d+: the time to finish is over; cut: (\d+)", run.said):
        told[who] += int(count)
    direct = [name for name in names if not name.startswith("ports")]
    assert told == {"proxy": len(names) - len(direct), **dict.fromkeys(direct, 1)}
    found = {name: outcome(run, name, "/stream") for name in names}
    assert found == dict.fromkeys(names, (200, REASON, 2))


def test_a_request_without_a_response_gets_503_and_the_clean_up_runs(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    run, names = of_each_kind(penstock, tmp_path, SCHEMES, workers=2)
    wires = {name: begin_at(run, name, "/hang") for name in names}
    run.process.terminate()
    answers = {name: wire.answer() for name, wire in wires.items()}
    got = {name: (answer.status, answer["Connection"]) for name, answer in answers.items()}
    assert got == dict.fromkeys(names, (503, "close"))
    assert run.ended() == 0
    found = {name: outcome(run, name, "/hang") for name in names}
    assert found == dict.fromkeys(names, (503, REASON, 2))


def test_a_client_that_has_its_whole_answer_was_not_cut_however_long_the_handler_goes_on(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    run, names = of_each_kind(penstock, tmp_path, SCHEMES, workers=1)
    wires = {name: begin_at(run, name, "/answered") for name in names}
    got = {name: wire.answer().status for name, wire in wires.items()}
    assert got == dict.fromkeys(names, 200)
    assert run.process.poll() is None
    run.process.terminate()
    for wire in wires.values():
        # An end of file, or a reset if the machine is so slow that its close comes late.
        wire.is_reset()
    assert run.ended() == 0
    found = {name: outcome(run, name, "/answered") for name in names}
    assert found == dict.fromkeys(names, (200, "ok", 1))
    for words in ("cut: ", "cut off", "in the middle of an answer", ": 502 "):
        assert words not in run.said


def test_a_chunked_response_ends_without_its_last_chunk(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", timeouts=SHORT)
    wire = begin(run, "/stream")
    assert b"chunked" in wire.head()
    run.process.terminate()
    assert not wire.rest().endswith(b"0\r\n\r\n")
    assert run.ended() == 0


def test_a_tls_client_gets_no_close_notify(penstock: "Penstock", tmp_path: "Path") -> None:
    stopping_programs.write(tmp_path)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    run = penstock(
        app="aio:app",
        timeouts=SHORT,
        tls={"cert": str(tmp_path / "both.pem"), "key": str(tmp_path / "both.pem")},
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    sock = socket.create_connection(run.address(), timeout=60)
    with context.wrap_socket(
        sock, server_hostname="localhost", suppress_ragged_eofs=False
    ) as client:
        client.sendall(request("/stream"))
        run.look()
        run.process.terminate()
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            b"".join(iter(partial(client.recv, 1000), b""))
    assert run.ended() == 0
    assert entry(run, "/stream")["termination"] == REASON


def test_both_ends_of_a_relayed_connection_are_reset(
    penstock: "Penstock", origin: "Worker"
) -> None:
    seen = threading.Event()

    def answer(wire: "Wire") -> None:
        wire.exactly(1)
        wire.send(b"half a mess")
        try:
            wire.rest()
        except ConnectionResetError:
            seen.set()

    run = penstock("--to", origin(answer).address, mode="tcp", timeouts=SHORT)
    wire = run.connect()
    wire.send(b"?")
    assert wire.exactly(11) == b"half a mess"
    run.look()
    run.process.terminate()
    assert wire.is_reset()
    assert seen.wait(60)
    assert run.ended() == 0
    assert [line["termination"] for line in run.log] == [REASON]


def test_a_client_that_reads_nothing_does_not_hold_the_stop(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    run = penstock(app="penstock_worker.demo:app", timeouts=SHORT)
    wire = run.connect()
    wire.send(request("/bytes?n=1000000000"))
    wire.head()
    run.look()
    run.process.terminate()
    assert run.ended() == 0
    assert "killed" not in run.said
    assert entry(run, "/bytes?n=1000000000")["termination"] == REASON


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_term_cuts_visibly_and_still_cleans_up(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", scheme=scheme, workers=1, timeouts=NEVER)
    wire = begin(run, "/stream", minor=0)
    wire.until(b"piece")
    run.process.terminate()
    run.until(lambda: "stopping: " in run.said)
    run.process.terminate()
    assert wire.is_reset()
    assert run.ended() == 0
    assert entry(run, "/stream")["termination"] == REASON
    assert "cut: 1" in run.said


# -- programs and processes that do not cooperate


def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_clean_up_from_its_time(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    run, names = of_each_kind(penstock, tmp_path, ["ports", "shared"], workers=1)
    wires = {name: begin_at(run, name, "/stubborn") for name in names}
    run.process.terminate()
    got = {name: wire.answer().status for name, wire in wires.items()}
    assert got == dict.fromkeys(names, 503)
    assert run.ended() == 0
    for name in names:
        assert (run.folder / name / "cleaned-0").exists(), name
        assert f"{name}/0 did not leave within" in run.said


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_up_that_hangs_is_killed_at_the_deadline(
    penstock: "Penstock", tmp_path: "Path", kind: str
) -> None:
    stopping_programs.write(tmp_path)
    (tmp_path / "hang-in-clean-up").touch()
    run = penstock(app=f"{kind}:app", workers=1, timeouts={"stop": "2s"})
    assert run.stop() == 0
    assert "web/0 did not leave within" in run.said


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_up_that_fails_is_said_and_holds_nothing(
    penstock: "Penstock", tmp_path: "Path", kind: str
) -> None:
    stopping_programs.write(tmp_path)
    (tmp_path / "fail-in-clean-up").touch()
    run = penstock(app=f"{kind}:app", workers=1, timeouts=NEVER)
    assert run.stop() == 0
    assert "RuntimeError: it cannot be cleaned up" in run.err
    assert "web/0 exited with status 1" in run.said


@pytest.mark.parametrize("scheme", PASSED)
def test_the_connections_of_a_blocked_worker_are_reset_when_it_is_killed(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", scheme=scheme, workers=1, timeouts=SHORT)
    wire = begin(run, "/blocked", minor=0)
    wire.until(b"piece")
    # It hears of the stop just before it blocks, or not at all and is killed like that.
    run.process.terminate()
    run.ended()
    assert "web/0 did not leave within" in run.said or "cut: 1" in run.said
    assert wire.is_reset() or "cut: 1" not in run.said


def test_workers_clean_up_even_if_the_only_proxy_is_stopped(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", workers=2, timeouts=SHORT)
    run.look()
    os.kill(run.proxy.pid, signal.SIGSTOP)
    run.process.terminate()
    assert run.ended() == 0
    assert cleaned(run) == 2
    assert "proxy/0 did not leave within" in run.said
    assert "web/0 exited with status 0" in run.said


def test_a_stop_while_the_only_proxy_is_dead_ends_in_order(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", workers=2, timeouts=NEVER)
    run.look()
    os.kill(run.proxy.pid, signal.SIGKILL)
    assert run.stop() == 0
    assert cleaned(run) == 2


# -- the end of one worker


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_reload_that_meets_its_deadline_cuts_downloads_visibly(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", scheme=scheme, workers=1, timeouts=SHORT)
    before = pids(run)
    old = begin(run, "/stream", minor=0)
    old.until(b"piece")
    run.process.send_signal(signal.SIGHUP)
    settled(run, 1, before)
    # What its successor has is not cut.
    new = run.connect()
    new.send(request("/slow"))
    assert old.is_reset()
    run.until(lambda: cleaned(run) == 1)
    (tmp_path / "go-on").touch()
    assert new.answer().status == 200
    run.until(
        lambda: run.metric("penstock_connection_errors_total", service="web", kind=REASON) == 1
    )
    terminations = {"/stream": REASON, "/slow": "ok"}
    run.until(lambda: {line["target"]: line["termination"] for line in run.log} == terminations)


def test_a_reload_that_meets_its_deadline_asks_the_successor_for_what_has_no_answer(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    retries = {"on": ["connect", "reset", "timeout"]}
    run = penstock(app="aio:app", workers=1, timeouts=SHORT, retries=retries)
    before = pids(run)
    wire = begin(run, "/slow")
    (pid,) = before
    os.kill(pid, signal.SIGSTOP)
    run.process.send_signal(signal.SIGHUP)
    settled(run, 1, before)
    (tmp_path / "go-on").touch()
    assert wire.answer().status == 200
    run.until(lambda: [line["retries"] for line in run.log] == [1])


def test_a_reload_that_meets_its_deadline_cuts_uploads_visibly(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="penstock_worker.demo:app", workers=1, timeouts=SHORT)
    before = pids(run)
    wire = run.connect()
    wire.send(request("/echo", "Content-Length: 1000", method="POST", body=b"half"))
    assert wire.head().startswith(b"HTTP/1.1 200 ")
    run.process.send_signal(signal.SIGHUP)
    settled(run, 1, before)
    assert len(wire.rest()) < 1000
    run.until(lambda: [line["termination"] for line in run.log] == [REASON])
    run.until(lambda: "cut: 1" in run.said)


def test_a_killed_worker_leaves_no_clean_end_to_a_relayed_client(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import os, signal, socket, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "kept = []\n"
        "while True:\n"
        "    sock, _ = listener.accept()\n"
        "    sock.sendall(b'half a mess')\n"
        "    kept.append(sock)\n"
    )
    run = penstock(
        mode="tcp",
        command=["python", "stubborn.py"],
        workers=1,
        timeouts={"stop": "2s"},
        worker_ports="20000-40000",
    )
    before = pids(run)
    wire = run.connect()
    assert wire.exactly(11) == b"half a mess"
    run.process.send_signal(signal.SIGHUP)
    settled(run, 1, before)
    assert wire.is_reset()
    run.until(lambda: "did not leave within 2 s and is killed" in run.said)
