"""A subject is a real cluster: its address and roles are known, and it leaves no process."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psutil
import pytest

from penstock_supervisor.compare import subject as subject_module
from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.subject import ExternalSubject, RunningSubject, SubjectError
from penstock_supervisor.compare.variants import Variant, choose
from penstock_supervisor.config.loader import load

WAIT_S = 60.0


def variant(name: str = "ports/http", **keys: object) -> Variant:
    (service,) = load(None, keys).services
    (one,) = choose(service, (name,), "/tmp").variants
    return one


@asynccontextmanager
async def running(one: Variant) -> AsyncIterator[RunningSubject]:
    subject = RunningSubject(one)
    try:
        await subject.start()
        yield subject
    finally:
        await subject.stop()


def wait_for_end(pids: set[int]) -> None:
    """Wait for the end of processes, some of which are not children of this process."""
    found = []
    for pid in pids:
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(found, WAIT_S)
    assert alive == []


def test_a_new_worker_takes_over_at_once_while_all_are_replaced_under_load() -> None:
    config = load(None, {"workers": 3})
    (measured,) = subject_module._unwatched(config).services
    (given,) = config.services
    assert (given.rollout.watch, measured.rollout.watch) == (5.0, 0.0)
    assert measured.model_copy(update={"rollout": given.rollout}) == given


async def test_a_subject_reports_its_processes_by_role_and_leaves_none() -> None:
    async with running(variant(workers=3)) as subject:
        assert subject.address.startswith("127.0.0.1:")
        roles = await subject.roles()
        assert set(roles) == {"supervisor", "proxy", "workers"}
        assert len(roles["proxy"]) == 1
        assert len(roles["workers"]) == 3
        assert len(roles["supervisor"]) == 2
        pids = {pid for role in roles.values() for pid in role}
        assert len(pids) == 6
        assert resource_usage.rss(roles["workers"]) > 0
        what, split = await subject.split()
        assert (what, split) == ("requests", dict.fromkeys(split, 0))
    wait_for_end(pids)


async def test_processes_that_a_worker_started_count_as_workers() -> None:
    argv = "[sys.executable, '-m', 'http.server', '-b', '127.0.0.1', os.environ['PORT']]"
    program = f"import os, subprocess, sys; subprocess.run({argv})"
    (service,) = load(None, {"command": (sys.executable, "-c", program), "workers": 1}).services
    (one,) = choose(service, ("ports/tcp",), "/tmp").variants
    async with running(one) as subject:
        roles = await subject.roles()
        assert len(roles["workers"]) == 2
    wait_for_end({pid for role in roles.values() for pid in role})


async def test_a_program_that_cannot_start_is_named_in_one_line() -> None:
    subject = RunningSubject(variant(app="penstock_worker.demo:nothing"))
    try:
        with pytest.raises(SubjectError, match="nothing") as caught:
            await subject.start()
    finally:
        await subject.stop()
    assert "\n" not in str(caught.value)


async def test_a_killed_supervisor_is_reported_and_its_processes_end() -> None:
    async with running(variant()) as subject:
        roles = await subject.roles()
        subject.signal(signal.SIGKILL)
        wait_for_end({pid for role in roles.values() for pid in role} - set(roles["supervisor"]))
        with pytest.raises(SubjectError, match="does not answer"):
            await subject.workers()


def test_a_subject_stops_when_its_standard_input_is_closed() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "penstock_supervisor.compare.subject"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(variant().config.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        assert b"listening" in process.stdout.readline()
        children = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        process.stdin.close()
        try:
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    assert len(children) == 4
    wait_for_end(children)


@pytest.fixture
def external_server() -> Iterator[tuple[int, int]]:
    """A server that is no child of a subject: its process and port."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "-b", "127.0.0.1", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout
        yield server.pid, int(server.stdout.readline().split(b"port ")[1].split()[0])
        server.kill()


async def test_an_external_address_has_the_processes_that_listen_there(
    external_server: tuple[int, int],
) -> None:
    pid, port = external_server
    subject = ExternalSubject(f"127.0.0.1:{port}")
    roles = await subject.roles()
    assert roles == {"server": (pid,)}
    assert await subject.outgoing_connections(roles) == 0
    assert await subject.split() == ("connections", {})
