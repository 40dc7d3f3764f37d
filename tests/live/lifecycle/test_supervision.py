"""`penstock run` keeps its workers alive, has clear errors at start, and leaves nothing behind.

The command, the proxy, the workers and the signals are real. Each run is watched by pid, so
"nothing survives" holds for every process that the run ever had.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.support.live.cluster import descendants, environment, is_alive
from tests.support.live.many_clients import SCHEMES
from tests.support.live.wire import WAIT_S

SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        open("asked", "w").close()
        text = f"{os.getpid()} {os.environ['PORT']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
"""Answers with its pid and port; leaves a file behind when it was asked for the first time."""


class Run:
    """One `penstock run -c FILE`, its output, and every process that it ever had."""

    def __init__(self, folder: Path, *tables: str) -> None:
        (folder / "server.py").write_text(SERVER)
        (folder / "penstock.toml").write_text('admin = "127.0.0.1:0"\n' + "\n".join(tables))
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock_supervisor", "run", "-c", "penstock.toml"],
                cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.look()
            assert time.monotonic() < deadline, self.out + self.err
            time.sleep(0.01)

    def started(self) -> "Run":
        self.until(lambda: "Ctrl-C to stop\n" in self.err or self.process.poll() is not None)
        assert self.process.poll() is None, self.err
        return self

    def look(self) -> list[psutil.Process]:
        """Everything below the supervisor; remembered for the end."""
        found = descendants(self.process.pid)
        self._seen.update((process.pid, process) for process in found)
        return found

    def address(self, name: str) -> tuple[str, int]:
        match = re.search(rf"{name} on (?:http://)?([\d.]+):(\d+)", self.err)
        assert match, self.err
        return match[1], int(match[2])

    def get(self, path: str = "/", name: str = "web") -> str:
        connection = http.client.HTTPConnection(*self.address(name), timeout=WAIT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def worker(self, name: str) -> dict[str, object]:
        service, slot = name.split("/")
        workers = json.loads(self.get("/status", "admin"))["services"][service]["workers"]
        worker = workers[int(slot)]
        assert isinstance(worker, dict)
        return worker

    def until_up(self, name: str) -> None:
        self.until(lambda: self.worker(name)["health"] == "up")

    def pid(self, name: str) -> int:
        pid = self.worker(name)["pid"]
        assert isinstance(pid, int)
        return pid

    def ended(self) -> int:
        """Wait for its end; nothing that was ever seen may be left."""
        self.until(lambda: self.process.poll() is not None)
        self.until(lambda: not any(map(is_alive, self._seen.values())))
        return self.process.returncode

    def stop(self) -> int:
        self.look()
        self.process.terminate()
        return self.ended()

    def close(self) -> None:
        """Whatever a test left: end it, each by its pid."""
        self.look()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for process in filter(is_alive, self._seen.values()):
            process.kill()


@contextmanager
def running(folder: Path, *tables: str) -> Iterator[Run]:
    run = Run(folder, *tables)
    try:
        yield run
    finally:
        run.close()


def web(command: str, more: str = "", name: str = "web") -> str:
    return f"""
[service.{name}]
listen = "127.0.0.1:0"
access_log = "off"
{command}
{more}
"""


PYTHON = f'"{sys.executable}"'
HTTP = f'command = [{PYTHON}, "server.py"]'


def shell(script: str) -> str:
    return f"command = {json.dumps(['sh', '-c', script])}"


def test_a_killed_worker_is_restarted_on_its_port(tmp_path: Path) -> None:
    with running(tmp_path, web(HTTP, "workers = 1")) as run:
        run.started()
        before = run.get()
        os.kill(int(before.split()[0]), signal.SIGKILL)
        run.until(lambda: run.worker("web/0")["restarts"] == {"signal": 1})
        run.until_up("web/0")
        after = run.get()
        assert after.split()[1] == before.split()[1]
        assert after.split()[0] != before.split()[0]
        assert re.search(
            r"web/0 was killed by SIGKILL after .* s, and not from here \(out of memory\?\); "
            "restart 1 of 5 in ",
            run.err,
        )
        assert run.stop() == 0


def test_a_killed_proxy_refuses_no_connect_and_is_restarted(tmp_path: Path) -> None:
    with running(tmp_path, web(HTTP)) as run:
        run.started()
        run.get()
        (proxy,) = (p for p in run.look() if "penstock_proxy" in p.cmdline())
        proxy.kill()
        # Straight after: no process accepts yet, and no connect is refused.
        for _ in range(10):
            socket.create_connection(run.address("web"), timeout=WAIT_S).close()
        assert len(run.get().split()) == 2
        assert run.stop() == 0


def test_a_child_that_ignores_term_is_killed_with_all_below_it(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & {sys.executable} server.py & wait; wait; sleep 1000"
    more = '[service.web.timeouts]\nstop = "300ms"'
    with running(tmp_path, web(shell(script), more)) as run:
        run.started()
        assert len([p for p in run.look() if p.name() == "sleep"]) == 2
        assert run.stop() == 0
        assert "did not leave within 0.3 s and is killed" in run.err
        assert "web/0 was killed by SIGKILL, as it did not leave within 0.3 s" in run.err


# A service that never worked ends the run, so slot 1 waits until slot 0 does: the proxy checks
# only workers that have joined.
FAILING = """
if [ "$PENSTOCK_SLOT" = 1 ]; then
    until [ -e asked ]; do sleep 0.01; done
    exit 7
fi
exec {} server.py
"""
CHECKED = '\n[service.web.health]\npath = "/"\n'


def test_giving_up_one_worker_leaves_the_others_serving(tmp_path: Path) -> None:
    script = FAILING.format(sys.executable)
    more = '[service.web.restart]\nmax_restarts = 2\nbackoff = "20ms"' + CHECKED
    with running(tmp_path, web(shell(script), more)) as run:
        run.started()
        assert run.worker("web/1")["state"] == "crash_loop"
        assert len({run.get() for _ in range(4)}) == 1
        assert "CRITICAL web/1 is in a crash loop: " in run.err
        assert run.stop() == 0


def test_a_crash_loop_waits_longer_each_time(tmp_path: Path) -> None:
    script = FAILING.format(sys.executable)
    more = '[service.web.restart]\nmax_restarts = 4\nbackoff = "100ms"' + CHECKED
    with running(tmp_path, web(shell(script), more)) as run:
        run.started()
        # Half of each wait is drawn: 0.05-0.1, 0.1-0.2, 0.2-0.4, 0.4-0.8.
        waits = re.findall(r"web/1 exited with status 7 .* in (\d\.\d) s", run.err)
        assert len(waits) == 4
        assert waits == sorted(waits)
        assert float(waits[-1]) >= 0.4
        assert run.stop() == 0


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"sleep 1000 & {sys.executable} server.py & wait"
    app = web('app = "penstock_worker.demo:app"', name="api")
    with running(tmp_path, web(shell(script)), app) as run:
        run.started()
        seen = run.look()
        # Proxy, guardian, and two services of two; a shell has two below it.
        assert len(seen) == 2 + 2 * 3 + 2
        run.process.kill()
        assert run.ended() == -signal.SIGKILL


def test_a_supervisor_killed_in_the_middle_of_the_start_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, web(shell("sleep 1000 & sleep 1000"), "workers = 4")) as run:
        run.until(lambda: any(p.name() == "sleep" for p in run.look()))
        run.process.kill()
        assert run.ended() == -signal.SIGKILL


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stop_during_the_start_is_a_stop(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "slow.py").write_text("import time\nopen('began', 'w')\ntime.sleep(1000)\n")
    with running(tmp_path, web('app = "slow:app"', f'scheme = "{scheme}"')) as run:
        run.until((tmp_path / "began").exists)
        assert run.stop() == 0
        assert "penstock: " not in run.err


def test_there_are_no_zombies(tmp_path: Path) -> None:
    with running(tmp_path, web(HTTP)) as run:
        run.started()
        for slot in (0, 1):
            os.kill(run.pid(f"web/{slot}"), signal.SIGKILL)
            run.until(lambda: f"web/{slot} was killed" in run.err)  # noqa: B023 — used at once
            run.until_up(f"web/{slot}")
        ours = psutil.Process(run.process.pid).children()
        assert all(process.status() != psutil.STATUS_ZOMBIE for process in ours)
        assert run.stop() == 0


def test_output_is_kept_in_lines_with_names(tmp_path: Path) -> None:
    script = f"echo to out; echo to err >&2; printf 'no end'; exec {sys.executable} server.py"
    with running(tmp_path, web(shell(script))) as run:
        run.started()
        assert run.stop() == 0
        for slot in (0, 1):
            assert f"web/{slot} | to out\n" in run.out
            assert f"web/{slot} | no end\n" in run.out
            assert f"web/{slot} | to err\n" in run.err


def test_a_loud_child_loses_no_line(tmp_path: Path) -> None:
    script = f"seq 1 200000; exec {sys.executable} server.py"
    with running(tmp_path, web(shell(script), "workers = 1")) as run:
        run.started()
        assert run.stop() == 0
        assert run.out.splitlines() == [f"web/0 | {n}" for n in range(1, 200_001)]


def test_a_second_term_ends_the_run_at_once(tmp_path: Path) -> None:
    script = f"trap '' TERM; {sys.executable} server.py & wait; wait; sleep 1000"
    with running(tmp_path, web(shell(script))) as run:
        run.started()
        run.process.terminate()
        run.until(lambda: run.err.count("proxy/0 exited") == 1)
        run.process.terminate()
        assert run.ended() == 0
        assert "stopping at once" in run.err


def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    table = web(HTTP).replace("127.0.0.1:0", f"unix:{path}")
    with running(tmp_path, table) as run:
        run.started()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_S)
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        assert run.stop() == 0
        assert not path.exists()


def test_a_run_never_takes_the_unix_socket_of_one_that_is_starting(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    where = "127.0.0.1:0", f"unix:{path}"
    with running(first, web(shell("sleep 1000")).replace(*where)) as starting:
        starting.until(lambda: any(p.name() == "sleep" for p in starting.look()))
        with running(second, web(HTTP).replace(*where)) as late:
            assert late.ended() == 1
            assert f"cannot listen on unix:{path} (service.web.listen): address already" in late.err
        assert path.is_socket()
        starting.process.kill()
        assert starting.ended() == -signal.SIGKILL
    # What a killed run leaves hinders no other run.
    assert path.is_socket()
    with running(second, web(HTTP).replace(*where)) as next_:
        assert next_.started().stop() == 0
    assert {one.name for one in tmp_path.iterdir()} == {"first", "second"}


QUICK = '[service.web.restart]\nmax_restarts = 1\nbackoff = "20ms"\n'
SOON = '[service.web.timeouts]\nstart = "1s"\n'
CANNOT_START = {
    "a missing program": (
        web('command = ["nodee"]'),
        r'service\.web\.command: "nodee": no such program',
    ),
    "an app that does not import": (
        web('app = "nothing_of_this_name:app"'),
        r"web/\d: .*nothing_of_this_name.*",
    ),
    "a program that ends": (
        web(shell("exit 3"), QUICK),
        r"web/\d exited with status 3 after \d+\.\d s; it ended 2 times within 60 s",
    ),
    "a program that never listens": (
        web(shell("sleep 1000"), SOON),
        r"web/\d: nothing answered on 127\.0\.0\.1:\d+ within 1 s; its process listens nowhere",
    ),
    "a program that listens elsewhere": (
        web(shell(f"PORT=0 exec {sys.executable} server.py"), SOON),
        r"web/\d: nothing answered on .* within 1 s; its process listens on .* — it must use .*",
    ),
}


@pytest.mark.parametrize("table", CANNOT_START.values(), ids=CANNOT_START.keys())
def test_a_run_that_cannot_start_prints_one_clear_line(
    table: tuple[str, str], tmp_path: Path
) -> None:
    config, line = table
    with running(tmp_path, config) as run:
        assert run.ended() == 1
        ours = [text for text in run.err.splitlines() if text.startswith("penstock: ")]
        assert len(ours) == 1
        assert re.fullmatch(rf"penstock: {line}", ours[0])
        assert "Traceback" not in "".join(t for t in run.err.splitlines() if " | " not in t)


def test_a_taken_port_is_one_clear_line_of_error_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        table = web(HTTP).replace("127.0.0.1:0", f"127.0.0.1:{port}")
        with running(tmp_path, table) as run:
            assert run.ended() == 1
            # As root it is warned before.
            said = [line for line in run.err.splitlines() if " WARNING " not in line]
            assert len(said) == 1
            assert re.fullmatch(
                rf"penstock: cannot listen on 127\.0\.0\.1:{port} \(service\.web\.listen\): "
                rf"address already in use by .* \(pid {os.getpid()}\)",
                said[0],
            )
