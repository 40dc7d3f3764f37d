"""Programs get listening sockets as systemd passes them: descriptors and variables."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.descriptors import descriptors
from tests.support.supervisor.process_run import WAIT_S, Run, shell

from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import ExecSpec, dup_high
from penstock_supervisor.process.spawn import Exit, Process, SpawnError

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


async def test_a_python_program_gets_its_listening_socket_as_descriptor_3(
    guardian: Guardian, listening: socket.socket
) -> None:
    run = Run(guardian, sys.executable, "-c", SHOWS, listen=(listening.fileno(),))
    line = await run.line()
    assert line == f"1 {run.process.pid} web {port_of(listening)} of 0 1 2 3"
    await run.ended()


async def test_several_sockets_keep_their_order_beside_other_inherited_descriptors(
    guardian: Guardian, listening: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        other = dup_high(second.fileno())
        given = (second.fileno(), listening.fileno())
        run = Run(guardian, sys.executable, "-c", SHOWS, inherited=(other,), listen=given)
        os.close(other)
        ports = f"{port_of(second)} {port_of(listening)}"
        assert await run.line() == f"2 {run.process.pid} web:web {ports} of 0 1 2 3 4 {other}"
        await run.ended()


async def test_a_shell_gets_its_own_pid_in_listen_pid(
    guardian: Guardian, listening: socket.socket
) -> None:
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


async def test_a_program_that_ignores_its_socket_runs_as_usual(
    guardian: Guardian, listening: socket.socket
) -> None:
    run = Run(guardian, *shell("echo fine"), listen=(listening.fileno(),))
    assert await run.line() == "fine"
    assert await run.ended() == Exit(0, None)


@pytest.mark.parametrize(
    ("program", "reason"), [("nodee", "no such program"), ("./data", "not a program")]
)
async def test_the_reason_of_a_failed_start_is_reported_with_a_socket_too(
    guardian: Guardian, folder: Path, listening: socket.socket, program: str, reason: str
) -> None:
    before = descriptors()
    with pytest.raises(SpawnError, match=reason):
        Process(
            ExecSpec((program,), dict(os.environ), str(folder), listen=(listening.fileno(),)),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert descriptors() == before


CROWDED = """
import asyncio, os, socket
from penstock_supervisor.process.spawn import Process, SpawnError
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import ExecSpec, dup_high

async def main():
    loop = asyncio.get_running_loop()
    guardian = Guardian(loop)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fds = tuple(dup_high(sock.fileno()) for _ in range(16))
        for fd in lows:
            os.close(fd)
        try:
            Process(ExecSpec(("nodee",), os.environ, listen=fds), loop, guardian, print)
        except SpawnError as error:
            print(error)
    guardian.close()

lows = [os.open("/dev/null", os.O_RDONLY) for _ in range(24)]
asyncio.run(main())
"""


def test_socket_descriptors_never_overwrite_the_pipe_that_reports_a_failure() -> None:
    # Everything from 3 on is free here, as it is not in a test.
    done = subprocess.run(
        [sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ('"nodee": no such program\n', "")


def test_a_descriptor_is_copied_to_a_high_number(listening: socket.socket) -> None:
    fd = dup_high(listening.fileno())
    assert fd >= 64
    assert not os.get_inheritable(fd)
    os.close(fd)
