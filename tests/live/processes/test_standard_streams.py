"""A run does not need its standard streams: closed, full, broken or read by nobody."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.live.many_clients import DEMO
from tests.support.live.plain_server import SERVER
from tests.support.live.quiet_run import QuietRun
from tests.support.live.wire import until

CHATTY = (
    SERVER
    + """
import sys, threading
Handler.log_message = lambda *_: None
def chat():
    while True:
        sys.stderr.write("x" * 4000 + "\\n")
threading.Thread(target=chat, daemon=True).start()
server.serve_forever()
"""
)
CLOSED = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """A pipe that is full, as one whose reader sleeps."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def killed_and_back(run: QuietRun) -> None:
    before = run.workers()[0]["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: run.workers()[0]["health"] == "up" and run.workers()[0]["pid"] != before)


def test_a_run_whose_output_nobody_reads_serves_restarts_and_stops(
    tmp_path: Path, unread: tuple[int, int]
) -> None:
    _, writer = unread
    with QuietRun(tmp_path, DEMO, stdout=writer, stderr=writer) as run:
        killed_and_back(run)
        assert run.get()[0] == 200
        assert run.stop(signal.SIGTERM) == 0


def test_a_worker_that_talks_too_much_for_a_reader_that_sleeps_stops_nobody_else(
    tmp_path: Path, unread: tuple[int, int]
) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    _, writer = unread
    with QuietRun(tmp_path, "--", "python3", "chatty.py", stdout=writer, stderr=writer) as run:
        killed_and_back(run)
        for number in (signal.SIGUSR2, signal.SIGTTIN):
            run.process.send_signal(number)
        assert run.get("/status", "admin")[0] == 200
        assert run.stop(signal.SIGTERM) == 0


def test_what_has_waited_is_written_when_somebody_reads_again(
    tmp_path: Path, unread: tuple[int, int]
) -> None:
    reader, writer = unread
    with QuietRun(tmp_path, DEMO, "-vv", stdout=writer, stderr=writer) as run:
        assert run.get()[0] == 200
        os.set_blocking(reader, False)
        read = b""

        def said_all() -> bool:
            nonlocal read
            with suppress(BlockingIOError):
                read += os.read(reader, 1 << 16)
            return b"Ctrl-C to stop" in read

        until(said_all)
        assert run.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("kind", ["full", "broken"])
def test_a_full_disk_or_a_broken_pipe_behind_stderr_ends_nothing(tmp_path: Path, kind: str) -> None:
    if kind == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, fd = os.pipe()
        os.close(reader)
    try:
        with QuietRun(tmp_path, DEMO, stdout=fd, stderr=fd) as run:
            killed_and_back(run)
            assert run.get()[0] == 200
            assert run.stop(signal.SIGTERM) == 0
    finally:
        os.close(fd)


def test_descriptors_0_to_2_are_open_in_every_process(tmp_path: Path) -> None:
    with QuietRun(tmp_path, DEMO, under=CLOSED) as run:
        for pid in (run.process.pid, *(process.pid for process in run.look())):
            for fd in range(3):
                target = str(Path(f"/proc/{pid}/fd/{fd}").readlink())
                assert target == "/dev/null" or target.startswith("pipe:"), (pid, fd, target)
        killed_and_back(run)
        assert run.get()[0] == 200
        assert run.stop(signal.SIGTERM) == 0


def test_standard_streams_are_left_as_they_are(tmp_path: Path) -> None:
    """A non-blocking stderr would surprise the shell that shares it."""
    reader, writer = os.pipe()
    with QuietRun(tmp_path, DEMO, stdout=writer, stderr=writer) as run:
        assert run.get()[0] == 200
        assert run.stop(signal.SIGTERM) == 0
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(reader)
    os.close(writer)
