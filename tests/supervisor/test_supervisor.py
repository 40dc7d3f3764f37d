"""A run opens sockets, starts children, and stops proxies first; failures are early and clear.

Workers are real processes, the proxy is a stand-in that logs its messages, and the run
is in this process, so that a test can look at both ends.

Covers `assembly`, `child_events`, `children/diagnosis` and `control/endpoints`.
Covers `observability/collect`, `rollout/resources` and `rollout/log_reopening`.
"""

import asyncio
import os
import random
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.children import plan
from penstock_supervisor.config.file_access import why_no_directory
from penstock_supervisor.config.model import Config, Restart, Service
from penstock_supervisor.listeners.worker_ports import free_ports
from penstock_supervisor.rollout import directories
from penstock_supervisor.snapshot import ChildView
from penstock_supervisor.supervisor import StartError, Supervisor

PROXY = (sys.executable, str(Path(__file__).parents[1] / "support/supervisor/standin_proxy.py"))
SERVER = """
import os, socket, sys, time
with socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) as server:
    print("up", flush=True)
    while True:
        server.accept()[0].close()
"""
WAIT_S = 30.0


def service(code: str = SERVER, name: str = "web", **keys: Any) -> Service:
    timeouts = {"start": "20s", "stop": "20s", **keys.pop("timeouts", {})}
    program = {"command": [sys.executable, "-c", code]}
    if "command" in keys or "app" in keys or "upstreams" in keys:
        program = {}
    return Service.model_validate(
        {"name": name, "listen": "127.0.0.1:0", "timeouts": timeouts, **program, **keys}
    )


class Harness:
    """A supervisor, and its output."""

    def __init__(self, *services: Service, admin: str = "", behaviour: str = "") -> None:
        self._out, out = os.pipe()
        self._err, err = os.pipe()
        self._ends = (out, err)
        os.set_blocking(self._out, False)
        os.set_blocking(self._err, False)
        self.out = self.err = ""
        self.stopped = False
        self.started = asyncio.Event()
        self.supervisor = Supervisor(
            Config(admin=admin, services=services),
            environment={**os.environ, "BEHAVIOUR": behaviour},
            on_started=lambda _: self.started.set(),
            proxy=PROXY,
            stdout=out,
            stderr=err,
        )

    def stop(self) -> None:
        self.stopped = True
        self.supervisor.stop()

    def read(self) -> str:
        for fd, name in ((self._out, "out"), (self._err, "err")):
            try:
                setattr(self, name, getattr(self, name) + os.read(fd, 1 << 20).decode())
            except BlockingIOError:
                continue
        return self.err

    def close(self) -> None:
        self.read()
        for fd in (self._out, self._err, *self._ends):
            os.close(fd)

    async def logged(self, text: str, times: int = 1) -> None:
        await until(lambda: self.read().count(text) >= times)

    async def out_has(self, text: str, times: int) -> None:
        def has() -> bool:
            self.read()
            return self.out.count(text) >= times

        await until(has)

    async def view(self, name: str) -> ChildView:
        for view in (await self.supervisor.take_snapshot(5)).children:
            if f"{view.service or view.role}/{view.slot}" == name:
                return view
        raise LookupError(name)

    async def pid(self, name: str) -> int:
        pid = (await self.view(name)).pid
        assert pid is not None
        return pid


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    *services: Service, admin: str = "", behaviour: str = ""
) -> AsyncIterator[Harness]:
    """A run that has started. At the end it is stopped, and must leave nothing."""
    harness = Harness(*services, admin=admin, behaviour=behaviour)
    try:
        async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as tasks:
            run = tasks.create_task(harness.supervisor.run())
            await harness.started.wait()
            yield harness
            if not harness.stopped:
                harness.stop()
            assert await run == 0
    finally:
        harness.close()
        assert_nothing_left()


async def failure(*services: Service, admin: str = "", behaviour: str = "") -> str:
    """The one line of a run that cannot start."""
    harness = Harness(*services, admin=admin, behaviour=behaviour)
    try:
        async with asyncio.timeout(2 * WAIT_S):
            with pytest.raises(StartError) as raised:
                await harness.supervisor.run()
    finally:
        harness.close()
        assert_nothing_left()
    assert not harness.started.is_set()
    return str(raised.value)


def assert_nothing_left() -> None:
    assert [child.cmdline() for child in psutil.Process().children(recursive=True)] == []


async def test_a_run_starts_everything_and_leaves_nothing() -> None:
    before = descriptors()
    async with running(service()) as harness:
        assert harness.supervisor.listening["web"].startswith("127.0.0.1:")
        assert len(harness.supervisor.workers["web"]) == 2
        assert harness.supervisor.admin == ""
        await harness.logged("got join 0")
        await harness.logged("got join 1")
    assert harness.out == "web/0 | up\nweb/1 | up\n" or harness.out == "web/1 | up\nweb/0 | up\n"
    assert descriptors() == before


async def test_the_proxy_exits_before_any_worker_is_stopped() -> None:
    code = SERVER.replace(
        "import os,",
        "import signal; signal.signal(15, lambda *_: (print('leaving', flush=True), sys.exit()))\n"
        "import os,",
    )
    async with running(service(code), behaviour="stubborn") as harness:
        proxy = await harness.pid("proxy/0")
        harness.stop()
        await harness.logged("got drain")
        assert "leaving" not in harness.out
        os.kill(proxy, signal.SIGKILL)
    assert harness.out.count("leaving") == 2


async def test_a_second_stop_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN)\n" + SERVER
    async with running(service(code, timeouts={"stop": "10m"}), behaviour="stubborn") as harness:
        harness.stop()
        await harness.logged("got drain")
        harness.stop()
    assert "within 600 s" not in caplog.text, "no process reached its time limit"
    # It was told to cut what is open, and had a moment for it.
    assert "proxy/0 did not leave within 1 s and is killed" in caplog.text


async def test_a_child_that_does_not_stop_in_time_is_killed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN)\n" + SERVER
    async with running(service(code, timeouts={"stop": "100ms"}), behaviour="stubborn"):
        pass
    for name in ("proxy/0", "web/0", "web/1"):
        assert f"{name} did not leave within 0.1 s and is killed" in caplog.text


async def test_a_restarted_worker_has_its_port_and_joins_again() -> None:
    async with running(service(workers=1)) as harness:
        before = await harness.view("web/0")
        os.kill(await harness.pid("web/0"), signal.SIGKILL)
        await harness.logged("got join 0", times=2)
        after = await harness.view("web/0")
        assert after.address == before.address
        assert after.pid != before.pid
        assert (after.restarts, after.last_exit, after.state) == ({"signal": 1}, "SIGKILL", "ready")
    assert re.search(r"got join 0.*got leave 0.*got join 0", harness.err, re.DOTALL)


async def test_a_new_proxy_gets_the_state_of_the_workers() -> None:
    async with running(service()) as harness:
        await harness.logged("got join 0")
        await harness.logged("got join 1")
        await observed_ready(harness)
        os.kill(await harness.pid("proxy/0"), signal.SIGKILL)
        await harness.logged("slot 0 joined=True up=True")
        await harness.logged("slot 1 joined=True up=True")
        await observed_ready(harness)
    assert harness.err.count("got join") == 2, "no worker was announced twice"


async def observed_ready(harness: Harness) -> None:
    async with asyncio.timeout(WAIT_S):
        while not (await harness.supervisor.take_snapshot(5)).ready:  # noqa: ASYNC110 — a snapshot has no event to wait for
            await asyncio.sleep(0.01)


async def test_no_connect_is_refused_while_the_proxy_restarts() -> None:
    async with running(service(workers=1)) as harness:
        host, _, port = harness.supervisor.listening["web"].partition(":")
        os.kill(await harness.pid("proxy/0"), signal.SIGKILL)
        for _ in range(20):
            with socket.socket() as client:
                assert client.connect_ex((host, int(port))) == 0


def failing(folder: Path) -> str:
    """Slot 1 exits, again and again, once slot 0 was asked; before, it would end the run."""
    asked = str(folder / "asked")
    return (
        "import os, pathlib, sys, time\n"
        "if os.environ['PENSTOCK_SLOT'] == '1':\n"
        f"    while not os.path.exists({asked!r}): time.sleep(0.01)\n"
        "    sys.exit(3)\n"
        + SERVER.replace("[0].close()", f"[0].close(); open({asked!r}, 'w').close()")
    )


async def test_a_worker_that_keeps_crashing_is_in_a_crash_loop_and_the_others_serve(
    tmp_path: Path,
) -> None:
    code = failing(tmp_path)
    restart = {"max_restarts": 2, "backoff": "10ms"}
    async with running(service(code, restart=restart)) as harness:
        lost, kept = await harness.view("web/1"), await harness.view("web/0")
        assert (lost.state, lost.restarts, lost.last_exit) == (
            "crash_loop",
            {"exit": 2},
            "status 3",
        )
        assert (kept.state, kept.restarts) == ("ready", {})


async def test_a_giveup_is_logged_as_critical(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = failing(tmp_path)
    async with running(service(code, restart={"max_restarts": 1, "backoff": "10ms"})):
        pass
    (alarm,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert alarm.getMessage().startswith("web/1 is in a crash loop: ")
    assert "ended 2 times within 60 s" in alarm.getMessage()


async def test_a_missing_program_is_named_with_its_key() -> None:
    assert await failure(service(command=["nodee"])) == (
        'service.web.command: "nodee": no such program'
    )


async def test_a_program_that_always_exits_ends_the_start() -> None:
    restart = {"max_restarts": 2, "backoff": "10ms"}
    text = await failure(service("import sys; sys.exit(3)", restart=restart))
    assert re.fullmatch(
        r"web/\d exited with status 3 after \d+\.\d s; it ended 3 times within 60 s", text
    )


async def test_an_app_that_cannot_be_imported_ends_the_start_at_once() -> None:
    text = await failure(service(app="no_such_module_at_all:app"))
    assert re.match(r"web/\d: ", text)
    assert "no_such_module_at_all" in text
    assert "\n" not in text


async def test_a_worker_that_never_listens_ends_the_start() -> None:
    text = await failure(
        service("import time; time.sleep(1000)", workers=1, timeouts={"start": "300ms"})
    )
    assert re.fullmatch(
        r"web/0: nothing answered on 127\.0\.0\.1:\d+ within 0\.3 s; its process listens nowhere",
        text,
    )


async def test_a_wrong_port_is_named() -> None:
    code = SERVER.replace('int(os.environ["PORT"])', "0")
    text = await failure(service(code, workers=1, timeouts={"start": "1s"}))
    assert re.fullmatch(
        r"web/0: nothing answered on 127\.0\.0\.1:\d+ within 1 s; its process listens on "
        r"127\.0\.0\.1:\d+ — it must use PORT or \{port\}",
        text,
    )


async def test_workers_that_bind_the_same_wrong_port_are_reported() -> None:
    # Only a port that a socket holds is sure to stay free; this socket lets others bind too.
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        code = SERVER.replace('int(os.environ["PORT"])', str(port))
        text = await failure(service(code, restart={"max_restarts": 3, "backoff": "300ms"}))
    assert f"listens on 127.0.0.1:{port} — it must use PORT" in text


async def test_a_proxy_that_cannot_start_ends_the_start() -> None:
    assert await failure(service(), behaviour="refuse") == "proxy/0: no such log"


async def test_a_taken_port_is_found_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = await failure(service(listen=f"127.0.0.1:{port}"))
        assert text.startswith(f"cannot listen on 127.0.0.1:{port} (service.web.listen): address")
        text = await failure(service(), admin=f"127.0.0.1:{port}")
        assert text.startswith(f"cannot listen on 127.0.0.1:{port} (admin): address")


async def test_no_worker_gets_a_port_that_the_run_itself_listens_on() -> None:
    # Below those of the kernel, with room for 60 more; others test here at the same time.
    low = random.randrange(20_000, 30_000)
    first = free_ports(1, (low, low + 1000), (), key="k", random_below=random.randrange)[0]
    own = {f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"}
    web = service(listen=f"127.0.0.1:{first}", worker_ports=f"{first}-{first + 60}")
    async with running(web, admin=f"127.0.0.1:{first + 1}") as harness:
        assert {harness.supervisor.listening["web"], harness.supervisor.admin} == own
        assert not own & set(harness.supervisor.workers["web"])


async def test_a_ready_service_is_not_ended_by_a_failure_that_would_end_the_start() -> None:
    async with running(
        service(workers=1, restart={"max_restarts": 1, "backoff": "10ms"})
    ) as harness:
        os.kill(await harness.pid("web/0"), signal.SIGKILL)
        await harness.logged("got join 0", times=2)
        os.kill(await harness.pid("web/0"), signal.SIGKILL)
        await harness.logged("got leave 0", times=2)
        snapshot = await harness.supervisor.take_snapshot(5)
        assert snapshot.children[1].state == "crash_loop"
        assert not snapshot.ready


async def test_a_run_in_which_everything_was_given_up_for_good_fails() -> None:
    restart = {"max_restarts": 1, "backoff": "10ms", "retry_after": "0s"}
    harness = Harness(service(restart=restart), service(name="api", restart=restart))
    async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(failing_run(harness))
        await harness.started.wait()
        # All but one, and the run goes on.
        for name in ("web/0", "web/1", "api/0"):
            await give_up(harness, name)
        assert not run.done()
        assert (await harness.view("api/1")).state == "ready"
        await give_up(harness, "api/1", last=True)
        assert await run == (
            "nothing is left that serves web, api: all ended too often, "
            "and restart.retry_after is 0"
        )
    harness.close()
    assert_nothing_left()


async def failing_run(harness: Harness) -> str:
    with pytest.raises(StartError) as caught:
        await harness.supervisor.run()
    return str(caught.value)


async def give_up(harness: Harness, name: str, *, last: bool = False) -> None:
    """Kill the worker until it is not restarted."""
    os.kill(pid := await harness.pid(name), signal.SIGKILL)

    async def is_next() -> bool:
        view = await harness.view(name)
        return view.pid not in (None, pid) and view.state == "ready"

    async with asyncio.timeout(WAIT_S):
        while not await is_next():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.01)
    os.kill(await harness.pid(name), signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        while not last and (await harness.view(name)).state != "crash_loop":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def impatient_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is in a crash loop at its second exit, and is soon tried again."""
    restart = Restart(max_restarts=1, backoff=0.01, backoff_max=0.1, retry_after=0.2)
    monkeypatch.setattr(plan, "PROXY_RESTART", restart)


@pytest.mark.usefixtures("impatient_proxy")
async def test_a_proxy_in_a_crash_loop_comes_back_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broken = tmp_path / "broken"
    async with running(service(workers=1), behaviour=str(broken)) as harness:
        broken.touch()
        os.kill(await harness.pid("proxy/0"), signal.SIGKILL)
        await until(lambda: any("still in the crash loop" in one for one in caplog.messages))
        snapshot = await harness.supervisor.take_snapshot(5)
        assert not snapshot.ready
        assert snapshot.children[0].crash_loop
        broken.unlink()
        await until(lambda: any("proxy/0 has left the crash" in one for one in caplog.messages))
        snapshot = await harness.supervisor.take_snapshot(5)
        assert (snapshot.ready, snapshot.children[0].events["giveup"]) == (True, 1)


@pytest.mark.usefixtures("impatient_proxy")
async def test_the_last_proxy_is_given_up_for_good_only_if_its_services_would_be(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    restart = {"retry_after": "0s"}
    harness = Harness(service(workers=1, restart=restart), behaviour=str(broken))
    async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(failing_run(harness))
        await harness.started.wait()
        broken.touch()
        os.kill(await harness.pid("proxy/0"), signal.SIGKILL)
        assert (await run).startswith("nothing is left that serves web")
    harness.close()
    assert_nothing_left()


async def test_upstreams_need_only_a_proxy() -> None:
    async with running(service(upstreams=["127.0.0.1:9"])) as harness:
        snapshot = await harness.supervisor.take_snapshot(5)
        assert [view.role for view in snapshot.children] == ["proxy"]
        assert snapshot.services["web"]["upstreams"] == ("127.0.0.1:9",)


async def test_a_silent_child_delays_a_snapshot_until_the_deadline_at_most() -> None:
    async with running(service(workers=1), behaviour="silent") as harness:
        proxy, worker = (await harness.supervisor.take_snapshot(0.05)).children
        assert (proxy.fresh, proxy.stats) == (False, {})
        assert (worker.fresh, worker.state) == (False, "ready")


async def test_several_snapshots_can_be_taken_at_once() -> None:
    async with running(service(workers=1)) as harness:
        seen = await asyncio.gather(*(harness.supervisor.take_snapshot(5) for _ in range(5)))
        assert all(snapshot.children[0].fresh for snapshot in seen)


async def test_a_unix_socket_is_removed_at_the_end_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    async with running(service(listen=f"unix:{path}")):
        assert path.is_socket()
    assert not path.exists()


async def test_a_stop_during_the_start_is_no_failure() -> None:
    harness = Harness(service("import time; time.sleep(1000)"))
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(harness.supervisor.run())
        await harness.logged("got configure")
        harness.supervisor.stop()
        assert await run == 0
    harness.close()
    assert_nothing_left()


async def test_a_proxy_that_closes_its_channel_is_restarted() -> None:
    async with running(service(workers=1), behaviour="hang up once") as harness:
        await harness.logged("slot 0 joined=True", times=1)
        assert (await harness.view("proxy/0")).restarts == {"signal": 1}


async def test_a_mount_that_hangs_under_a_directory_stops_one_start_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()

    def hang(path: str) -> str:
        answers.wait(WAIT_S)
        return why_no_directory(path)

    async with running(service(workers=2, directory=str(tmp_path))) as harness:
        with monkeypatch.context() as patch:
            patch.setattr(directories, "why_no_directory", hang)
            patch.setattr(directories, "LOOK_S", 0.05)
            os.kill(await harness.pid("web/0"), signal.SIGKILL)
            failed = f'web/0 could not be started: service.web.directory: "{tmp_path}": no answer'
            await until(lambda: caplog.text.count(failed) > 1)
            assert (await harness.view("web/1")).pid, "the others are as before"
        answers.set()
        await harness.out_has("up", times=3)
        assert (await harness.view("web/0")).restarts == {"signal": 1}


async def test_a_worker_whose_release_is_deleted_is_started_in_the_present_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link, releases = tmp_path / "current", [tmp_path / "1", tmp_path / "2"]
    for release in releases:
        release.mkdir()
    link.symlink_to("1")
    async with running(service(workers=1, directory=str(link))) as harness:
        link.unlink()
        link.symlink_to("2")
        releases[0].rmdir()
        os.kill(await harness.pid("web/0"), signal.SIGKILL)
        await harness.out_has("up", times=2)
    text = f"web/0: {releases[0]}, where it was started, is gone; it is started in {releases[1]}"
    assert caplog.messages.count(text) == 1


async def test_logs_are_reopened_by_the_proxy() -> None:
    async with running(service(workers=1)) as harness:
        harness.supervisor.reopen_logs()
        await harness.logged("got reopen")
    assert harness.err.count("got reopen") == 1
