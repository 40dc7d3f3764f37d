"""A new version for which there are too few descriptors, or too little memory, changes nothing."""

import resource
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import Load, reload, rollouts, served, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.live.conftest import Penstock
    from tests.live.rollout.conftest import FirstVersion

HUNGRY = """
import pathlib, sys
if pathlib.Path("version").read_text() == "hungry":
    hoard = bytearray(1 << 30)
import os, socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass

bound = "LISTEN_FDS" not in os.environ
address = "127.0.0.1", int(os.environ.get("PORT", "0"))
server = ThreadingHTTPServer(address, Handler, bind_and_activate=bound)
if not bound:
    server.socket.close()
    server.socket = socket.socket(fileno=3)
server.serve_forever()
"""
LIMITED = 'ulimit -v 600000; exec "$0" hungry.py'
FEW = 5
"""Descriptors that are left: enough for a request, and too few for a new process."""


@contextmanager
def few_descriptors(pid: int) -> "Iterator[None]":
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    free = (fd for fd in range(before[0]) if fd not in taken)
    limit = next(islice(free, FEW, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_descriptors_for_a_new_process_the_old_ones_stay(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, timeouts={"start": "3s"})
    before = pids(run)
    load = Load(run, 1)
    write(tmp_path, "good v2")
    with few_descriptors(run.process.pid):
        failed = reload(run)
    # Where not even the file could be read nothing was begun, and the status is 2.
    assert failed.status in (1, 2), failed.said
    assert "Too many open files" in failed.said
    assert load.end() == []
    assert pids(run) == before
    assert served(run) == "v1"
    again = reload(run)
    assert again.status == 0, again.said
    assert served(run) == "v2"


def test_more_workers_than_there_are_descriptors_for_are_refused(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    write(tmp_path, "good v1")
    table = {"app": "program:app", "workers": 1, "access_log": "off"}
    run = penstock(
        services={"web": table}, under=("prlimit", "--nofile=100:100"),
        top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    before = pids(run)
    run.configure({"web": {**table, "workers": 50}})
    done = reload(run)
    assert done.status == 2, done.said
    assert "the limit of open files is 100, and this run needs " in done.said
    assert pids(run) == before
    assert served(run) == "v1"


@pytest.mark.parametrize("scheme", ["ports", "shared", "reuseport"])
def test_a_program_that_gets_no_memory_changes_nothing(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "version").write_text("modest")
    run = penstock(
        command=["sh", "-c", LIMITED, sys.executable], scheme=scheme, workers=2,
        access_log="off", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    run.may_trace = True
    before = pids(run)
    (tmp_path / "version").write_text("hungry")
    done = reload(run)
    assert done.status == 1, done.said
    assert "MemoryError" in done.said
    assert pids(run) == before
    assert run.get() == (200, "hello")
    assert rollouts(run)[-1]["result"] == "aborted"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_new_process_that_the_kernel_kills_changes_nothing(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    before = pids(run)
    load = Load(run, 1)
    write(tmp_path, "killed v2")
    done = reload(run)
    assert done.status == 1, done.said
    assert "SIGKILL" in done.said
    assert load.end() == []
    assert pids(run) == before
    assert not any(worker["crash_loop"] for worker in run.workers())
