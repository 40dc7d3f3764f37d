"""Real processes: every end is seen once, nothing of a group outlives it, failures have a name,
and listening sockets are where systemd would have put them.
"""

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from tests.descriptors import descriptors

from penstock_supervisor.processes import Exit, Guardian, Process, SpawnError, reap_strangers
from penstock_supervisor.program import Program, high

WAIT_S = 20.0


@pytest.fixture
async def guardian() -> AsyncIterator[Guardian]:
    with closing(Guardian(asyncio.get_running_loop())) as guardian_:
        yield guardian_


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.01)


def pid_of(guardian_: Guardian) -> int:
    assert guardian_.pid is not None
    return guardian_.pid


class Run:
    """A process and the ends that were reported of it."""

    def __init__(
        self,
        guardian_: Guardian,
        *argv: str,
        inherited: tuple[int, ...] = (),
        listen: tuple[int, ...] = (),
    ) -> None:
        self.exits: list[Exit] = []
        # Whoever was given sockets himself must not hand his number on.
        environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "7"}
        program = Program(argv, environment, inherited=inherited, listen=listen, names="web")
        loop = asyncio.get_running_loop()
        self.process = Process(program, loop, guardian_, self.exits.append)
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    async def ended(self) -> Exit:
        await until(lambda: bool(self.exits))
        os.close(self.stdout)
        os.close(self.process.stderr)
        (exit_,) = self.exits
        return exit_

    async def line(self) -> str:
        data = bytearray()

        def read() -> bool:
            try:
                data.extend(os.read(self.stdout, 4096))
            except BlockingIOError:
                return False
            return data.endswith(b"\n")

        await until(read)
        return data.decode().strip()


def shell(script: str) -> tuple[str, str, str]:
    return "sh", "-c", script


def is_gone(pid: int) -> bool:
    """Dead; whose job it is to bury it is another question."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("status", [0, 1, 78])
async def test_an_exit_is_reported_with_its_status(guardian: Guardian, status: int) -> None:
    run = Run(guardian, *shell(f"exit {status}"))
    end = await run.ended()
    assert end == Exit(status, None)
    assert end.described == f"exited with status {status}"


async def test_a_death_by_signal_is_reported_by_its_name(guardian: Guardian) -> None:
    run = Run(guardian, *shell("kill -SEGV $$"))
    assert (await run.ended()).described == "was killed by SIGSEGV"


async def test_a_child_that_ended_is_no_zombie(guardian: Guardian) -> None:
    run = Run(guardian, *shell("exit 0"))
    await run.ended()
    assert not psutil.pid_exists(run.process.pid)


async def test_a_signal_reaches_the_whole_group(guardian: Guardian) -> None:
    run = Run(guardian, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    run.process.signal(signal.SIGTERM)
    assert await run.ended() == Exit(None, signal.SIGTERM)
    await until(lambda: is_gone(grandchild))


async def test_what_a_child_leaves_behind_is_killed(guardian: Guardian) -> None:
    run = Run(guardian, *shell("trap '' TERM; sleep 1000 >/dev/null 2>&1 & echo $!"))
    grandchild = int(await run.line())
    assert await run.ended() == Exit(0, None)
    await until(lambda: is_gone(grandchild))


async def test_a_signal_after_the_end_goes_to_nobody(guardian: Guardian) -> None:
    run = Run(guardian, *shell("exit 0"))
    pid = run.process.pid
    assert await run.ended() == Exit(0, None)
    run.process.signal(signal.SIGKILL)
    assert is_gone(pid)


async def test_a_child_inherits_what_it_is_given_and_nothing_else(guardian: Guardian) -> None:
    given, other = os.pipe()
    try:
        run = Run(guardian, sys.executable, "-c",
                  "import os; print(*(n for n in os.listdir('/proc/self/fd')"
                  " if os.path.exists(f'/proc/self/fd/{n}')))",
                  inherited=(given,))  # fmt: skip
        assert await run.line() == f"0 1 2 {given}"
        await run.ended()
    finally:
        os.close(given)
        os.close(other)


async def test_a_child_leads_a_session_of_its_own(guardian: Guardian) -> None:
    run = Run(guardian, sys.executable, "-c", "import os; print(os.getsid(0), os.getpgid(0))")
    pid = run.process.pid
    assert await run.line() == f"{pid} {pid}"
    await run.ended()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").write_text("just text\n")
    (tmp_path / "data").chmod(0o755)
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "orphan").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("nodee", "no such program"),
        ("./missing", "no such program"),
        ("./plain", "not executable"),
        ("./orphan", "interpreter in its first line is missing"),
        ("./data", "not a program"),
    ],
)
async def test_a_program_that_cannot_be_run_says_why(
    guardian: Guardian, folder: Path, program: str, reason: str
) -> None:
    with pytest.raises(SpawnError, match=reason) as failure:
        Process(
            Program((program,), dict(os.environ), str(folder)),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert failure.value.key == "command"
    assert str(failure.value).startswith(f'"{program}": ')


async def test_a_missing_directory_is_blamed_and_not_the_program(guardian: Guardian) -> None:
    with pytest.raises(SpawnError, match=r'"/no/such": no such directory') as failure:
        Process(
            Program(("sh",), dict(os.environ), "/no/such"),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert failure.value.key == "directory"


async def test_failed_starts_leave_no_descriptor(guardian: Guardian) -> None:
    before = descriptors()
    for _ in range(5):
        with pytest.raises(SpawnError):
            Run(guardian, "nodee")
    assert descriptors() == before


async def test_finished_processes_leave_no_descriptor(guardian: Guardian) -> None:
    before = descriptors()
    for _ in range(5):
        await Run(guardian, *shell("exit 0")).ended()
    assert descriptors() == before


async def test_the_guardian_kills_whole_groups_when_its_supervisor_is_gone() -> None:
    # Its own supervisor is this process, so its end is played by the pipe's end.
    loop = asyncio.get_running_loop()
    guardian_ = Guardian(loop)
    run = Run(guardian_, *shell("trap '' TERM; sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    assert (await run.ended()).signal == signal.SIGKILL


async def test_the_guardian_leaves_with_nothing_to_do() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    pid = pid_of(guardian_)
    run = Run(guardian_, *shell("exit 0"))
    await run.ended()
    guardian_.close()
    assert not psutil.pid_exists(pid)


async def test_the_guardian_ignores_signals_meant_for_a_terminal(guardian: Guardian) -> None:
    run = Run(guardian, *shell("echo up; sleep 1000"))
    await run.line()
    pid = pid_of(guardian)
    process = psutil.Process(pid)
    # It has read what the child announced, or will; its handlers were set before that.
    await until(lambda: process.status() == psutil.STATUS_SLEEPING and _ignores_term(pid))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    guardian.repeat()
    assert process.is_running()
    run.process.signal(signal.SIGKILL)
    await run.ended()


def _ignores_term(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False


async def test_a_guardian_that_dies_is_replaced_and_told_everything() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    first = pid_of(guardian_)
    os.kill(first, signal.SIGKILL)
    await until(lambda: guardian_.pid not in {None, first})
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    assert await run.ended() == Exit(None, signal.SIGKILL)


async def test_a_guardian_that_keeps_dying_is_replaced_with_longer_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = descriptors()
    with closing(Guardian(asyncio.get_running_loop())) as guardian_:
        gone: set[int | None] = {None}
        for _ in range(4):
            await until(lambda: guardian_.pid not in gone)
            gone.add(pid_of(guardian_))
            os.kill(pid_of(guardian_), signal.SIGKILL)
            await until(lambda: guardian_.pid is None or guardian_.pid not in gone)
        await until(lambda: guardian_.pid not in gone)
    pauses = [float(text) for text in re.findall(r"ended \(-9\); .* in (\S+) s", caplog.text)]
    assert len(pauses) == 4
    # Drawn from the upper halves of 0.1, 0.2 and 0.4 s, after a first one at once.
    assert pauses[0] == 0
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[3] >= 0.2
    assert descriptors() == before


async def test_a_child_can_start_while_the_death_of_the_guardian_is_not_known_yet() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    first = pid_of(guardian_)
    os.kill(first, signal.SIGKILL)
    # Blocking on purpose: the loop must not come to see it.
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    await until(lambda: guardian_.pid not in {None, first})
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    await run.ended()


async def test_a_guardian_that_cannot_start_is_tried_again_while_children_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        guardian_ = Guardian(asyncio.get_running_loop())
        run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
        grandchild = int(await run.line())
        await until(lambda: caplog.text.count("cannot be started (No such file") >= 2)
        assert guardian_.pid is None
    await until(lambda: guardian_.pid is not None)
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    await run.ended()
    assert descriptors() == before


async def test_a_guardian_that_cannot_be_watched_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        guardian_ = Guardian(asyncio.get_running_loop())
        assert guardian_.pid is None
        assert psutil.Process().children() == []
    assert "cannot be watched (Too many open files)" in caplog.text
    guardian_.close()
    assert descriptors() == before


SHOWS = """
import os, socket
names = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
fds = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
ports = [socket.socket(fileno=3 + n).getsockname()[1] for n in range(int(os.environ[names[0]]))]
print(*map(os.environ.get, names), *ports, "of", *sorted(map(int, fds)), flush=True)
"""


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def test_a_python_program_finds_its_listening_socket_at_3(
    guardian: Guardian, listening: socket.socket
) -> None:
    run = Run(guardian, sys.executable, "-c", SHOWS, listen=(listening.fileno(),))
    line = await run.line()
    assert line == f"1 {run.process.pid} web {port_of(listening)} of 0 1 2 3"
    await run.ended()


async def test_several_sockets_come_in_their_order_beside_what_is_inherited(
    guardian: Guardian, listening: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        other = high(second.fileno())
        given = (second.fileno(), listening.fileno())
        run = Run(guardian, sys.executable, "-c", SHOWS, inherited=(other,), listen=given)
        os.close(other)
        ports = f"{port_of(second)} {port_of(listening)}"
        assert await run.line() == f"2 {run.process.pid} web:web {ports} of 0 1 2 3 4 {other}"
        await run.ended()


async def test_a_shell_is_told_its_own_pid(guardian: Guardian, listening: socket.socket) -> None:
    script = 'echo "$LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$))"; readlink /proc/$$/fd/3'
    run = Run(guardian, *shell(f"({script}) | paste -s -"), listen=(listening.fileno(),))
    inode = os.fstat(listening.fileno()).st_ino
    assert await run.line() == f"1 web 1\tsocket:[{inode}]"
    await run.ended()


@pytest.mark.needs("node")
async def test_a_node_program_serves_the_socket_that_it_was_given(
    guardian: Guardian, listening: socket.socket
) -> None:
    code = """
    const listen = process.env.LISTEN_PID == process.pid && { fd: 3 };
    require("net").createServer(s => s.end("hello")).listen(listen, () => console.log("up"));
    """
    run = Run(guardian, "node", "-e", code, listen=(listening.fileno(),))
    assert await run.line() == "up"
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listening))
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    run.process.signal(signal.SIGKILL)
    await run.ended()


async def test_a_program_that_ignores_its_socket_is_not_disturbed(
    guardian: Guardian, listening: socket.socket
) -> None:
    run = Run(guardian, *shell("echo fine"), listen=(listening.fileno(),))
    assert await run.line() == "fine"
    assert await run.ended() == Exit(0, None)


@pytest.mark.parametrize(
    ("program", "reason"), [("nodee", "no such program"), ("./data", "not a program")]
)
async def test_a_program_that_cannot_be_run_says_why_with_a_socket_too(
    guardian: Guardian, folder: Path, listening: socket.socket, program: str, reason: str
) -> None:
    before = descriptors()
    with pytest.raises(SpawnError, match=reason):
        Process(
            Program((program,), dict(os.environ), str(folder), listen=(listening.fileno(),)),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert descriptors() == before


CROWDED = """
import asyncio, os, socket
from penstock_supervisor.processes import Guardian, Process, SpawnError
from penstock_supervisor.program import Program, high

async def main():
    loop = asyncio.get_running_loop()
    guardian = Guardian(loop)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fds = tuple(high(sock.fileno()) for _ in range(16))
        for fd in lows:
            os.close(fd)
        try:
            Process(Program(("nodee",), os.environ, listen=fds), loop, guardian, print)
        except SpawnError as error:
            print(error)
    guardian.close()

lows = [os.open("/dev/null", os.O_RDONLY) for _ in range(24)]
asyncio.run(main())
"""


def test_the_places_of_sockets_are_never_those_of_the_pipe_that_tells_of_a_failure() -> None:
    # Everything from 3 on is free here, as it is not in a test.
    done = subprocess.run(
        [sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ('"nodee": no such program\n', "")


def test_a_descriptor_is_copied_out_of_the_way(listening: socket.socket) -> None:
    fd = high(listening.fileno())
    assert fd >= 64
    assert not os.get_inheritable(fd)
    os.close(fd)


def stranger() -> int:
    return os.posix_spawn("/bin/true", ["true"], {})


async def test_process_1_buries_strangers_and_leaves_our_own_to_us() -> None:
    pids = [stranger() for _ in range(2)]
    await until(lambda: all(map(is_gone, pids)))
    reap_strangers(set(pids))
    assert all(map(psutil.pid_exists, pids))
    reap_strangers(set())
    assert not any(map(psutil.pid_exists, pids))
