"""Signals do what they are documented to do, and one that is sent to everybody harms nobody."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import DEMO, SCHEMES
from tests.support.live.quiet_run import QuietRun
from tests.support.live.wire import until

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

CARELESS = (
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH,
    signal.SIGPIPE, signal.SIGALRM, signal.SIGCHLD, signal.SIGCONT,
)  # fmt: skip
INHERITED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def pids(run: "Cluster") -> dict[str, int]:
    status = run.status()
    workers = status["services"]["web"]["workers"]
    return {
        **{f"worker {one['slot']}": one["pid"] for one in workers},
        **{f"proxy {one['slot']}": one["pid"] for one in status["proxies"]},
    }


def signals_of(pid: int, kind: str) -> set[int]:
    """The signals in one of the masks in /proc/PID/status: SigBlk, SigIgn or SigCgt."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(kind))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signal_that_is_sent_to_every_process_harms_nobody(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=2)
    before, processes = pids(run), run.look()
    for number in CARELESS:
        for process in (psutil.Process(run.process.pid), *processes):
            process.send_signal(number)
        assert run.get()[0] == 200
    assert pids(run) == before
    assert sorted(run.look(), key=hash) == sorted(processes, key=hash)
    for name in ("SIGTTIN", "SIGTTOU", "SIGUSR2"):
        run.until(lambda name=name: f"{name}: " in run.err)  # type: ignore[misc]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_proxies_workers_and_guardian_do_not_mind_what_a_terminal_sends(
    penstock: "Penstock", scheme: str, number: int
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=2)
    before, processes = pids(run), run.look()
    for process in processes:
        process.send_signal(number)
    assert run.get()[0] == 200
    assert pids(run) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_somebody_else_stops_is_started_again(
    penstock: "Penstock", scheme: str, number: int
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=2, restart={"backoff": "10ms"})
    pid = pids(run)["worker 0"]
    os.kill(pid, number)
    run.until(lambda: pids(run)["worker 0"] not in (pid, None))
    run.until(lambda: all(worker["health"] == "up" for worker in run.workers()))
    assert "web/0 exited with status 0" in run.err
    assert "is in a crash loop" not in run.err


def test_an_interrupted_proxy_drains_and_is_started_again(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, workers=1)
    before = run.proxy.pid
    run.proxy.send_signal(signal.SIGINT)
    run.until(lambda: pids(run)["proxy 0"] not in (before, None))
    run.until(lambda: run.get()[0] == 200)
    assert "proxy/0 exited with status 0" in run.err


def test_quit_ends_a_run_at_once(penstock: "Penstock", tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import asyncio\n"
        "from aiohttp import web\n"
        "async def forever(_):\n"
        "    open('asked', 'w').close()\n"
        "    await asyncio.sleep(3600)\n"
        "app = web.Application()\n"
        "app.router.add_get('/', forever)\n"
    )
    run = penstock(app="program:app", workers=1)
    wire = run.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    run.until(lambda: (tmp_path / "asked").exists())
    assert run.stop(signal.SIGQUIT) == 0
    assert "stopping at once" in run.err


def test_a_mask_and_ignored_signals_are_not_inherited(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, workers=2, under=(sys.executable, "-c", INHERITED))
    for process in (psutil.Process(run.process.pid), *run.look()):
        assert signals_of(process.pid, "SigBlk") == set()
    unwanted = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}
    for pid in pids(run).values():
        assert not signals_of(pid, "SigIgn") & unwanted
    victim = pids(run)["worker 1"]
    os.kill(victim, signal.SIGKILL)
    # With SIGCHLD ignored its status would be lost.
    run.until(lambda: "web/1 was killed by SIGKILL" in run.err)
    assert run.stop() == 0


def test_a_command_starts_with_the_default_of_every_signal(penstock: "Penstock") -> None:
    code = (
        "import os, signal, socket\n"
        "server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "signal.pause()\n"
    )
    # A shell execs it, so nothing of Python's own start is between us and what is read.
    run = penstock(
        command=["sh", "-c", 'grep ^Sig /proc/self/status; exec "$0" "$@"',
                 sys.executable, "-c", code],
        workers=1, under=(sys.executable, "-c", INHERITED),
    )  # fmt: skip
    out = (run.folder / "out").read_text()
    assert "web/0 | SigBlk:\t0000000000000000" in out
    ignored = re.search(r"web/0 \| SigIgn:\t(\w+)", out)
    # Signals 32 and 33 are the C library's own. Nobody can change what was inherited of them.
    assert ignored
    assert not int(ignored[1], 16) & ~(0b11 << 31)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN])
def test_a_signal_that_comes_while_it_starts_does_not_end_it(tmp_path: Path, number: int) -> None:
    run = QuietRun(tmp_path, DEMO)
    # As soon as our first lines have run, and long before all is imported.
    until(lambda: signal.SIGUSR2 in signals_of(run.process.pid, "SigCgt"))
    run.process.send_signal(number)
    with run:
        assert run.get()[0] == 200
        assert run.stop(signal.SIGTERM) == 0
