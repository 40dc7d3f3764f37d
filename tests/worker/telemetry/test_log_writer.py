"""A log writer keeps lines whole and in order, is bounded, and survives every failure.

Real pipes and files throughout: /dev/full is a full disk, a pipe without a reader is EPIPE.
"""

import fcntl
import logging
import os
import re
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.descriptors import descriptors

from penstock_worker.telemetry.log_writer import LogWriter

LINE = b"x" * 63 + b"\n"


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


def read_until(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], 10)[0], f"{len(data)} of {size} bytes came"
        data += os.read(fd, size - len(data))
    return data


def test_lines_arrive_in_order_and_close_flushes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log_writer = LogWriter(str(path))
    for number in range(1000):
        log_writer.write(b"%d\n" % number)
    log_writer.close()
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(1000))
    assert log_writer.dropped == 0


def test_a_file_is_appended_to_and_not_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for line in (b"one\n", b"two\n"):
        with LogWriter(str(path)) as log_writer:
            log_writer.write(line)
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o007 == 0


def test_a_path_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogWriter(str(tmp_path / "missing" / "log"))


def test_a_fifo_without_a_reader_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        LogWriter(str(path))


def test_a_descriptor_that_was_passed_is_not_closed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with LogWriter(writer) as log_writer:
        log_writer.write(b"one\n")
    os.write(writer, b"two\n")
    assert read_until(reader, 8) == b"one\ntwo\n"


def test_more_than_the_bound_is_dropped_and_counted_not_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    log_writer = LogWriter(writer, bound=10 * len(LINE))
    total = capacity // len(LINE) * 4
    for _ in range(total):
        log_writer.write(LINE)
    eventually(lambda: log_writer.dropped)
    # What was not dropped arrives, whole.
    os.set_blocking(reader, False)
    received = b""

    def drained() -> bool:
        nonlocal received
        with suppress(BlockingIOError):
            received += os.read(reader, 1 << 20)
        return received.count(b"\n") + log_writer.dropped == total

    eventually(drained)
    assert set(received.splitlines(keepends=True)) == {LINE}
    log_writer.close()


def test_with_back_pressure_nothing_is_dropped_and_room_is_announced(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    room = threading.Event()
    with LogWriter(writer, bound=1024, on_capacity=room.set) as log_writer:
        sent = 0
        while sent < 1 << 20 and not log_writer.full:
            log_writer.write(LINE)
            sent += len(LINE)
        assert sent < 1 << 20
        assert read_until(reader, sent) == LINE * (sent // len(LINE))
        assert room.wait(10)
        eventually(lambda: not log_writer.full)
        assert log_writer.dropped == 0


def test_an_exception_in_the_capacity_callback_does_not_stop_the_writer(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    with LogWriter(writer, bound=1, on_capacity=closed) as log_writer:
        log_writer.write(b"one\n")
        assert read_until(reader, 4) == b"one\n"
        log_writer.write(b"two\n")
        assert read_until(reader, 4) == b"two\n"


def test_a_non_blocking_pipe_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) * 3 // len(LINE) * len(LINE)
    with LogWriter(writer) as log_writer:
        log_writer.write(LINE * (size // len(LINE)))
        assert read_until(reader, size) == LINE * (size // len(LINE))
    assert log_writer.dropped == 0


def test_two_writers_on_one_pipe_never_mix_their_lines(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = [letter * 1500 + b"\n" for letter in (b"a", b"b")]
    with LogWriter(writer) as one, LogWriter(writer) as two:
        for _ in range(100):
            one.write(lines[0])
            two.write(lines[1])
        received = read_until(reader, 200 * 1501)
    assert sorted(received.splitlines(keepends=True)) == sorted(lines * 100)


def test_a_line_longer_than_a_pipe_keeps_whole_is_written_still(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    data = b"short\n" + b"x" * 10000 + b"\nend\n" + b"y" * 5000
    with LogWriter(writer) as log_writer:
        log_writer.write(data)
        assert read_until(reader, len(data)) == data


def test_reopen_continues_in_a_new_file_after_what_was_queued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogWriter(str(path)) as log_writer:
        log_writer.write(b"old\n")
        eventually(lambda: path.read_bytes())
        path.rename(tmp_path / "log.1")
        log_writer.write(b"still old\n")
        log_writer.reopen()
        log_writer.write(b"new\n")
    assert (tmp_path / "log.1").read_bytes() == b"old\nstill old\n"
    assert path.read_bytes() == b"new\n"


def test_reopen_leaves_a_descriptor_alone(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with LogWriter(writer) as log_writer:
        log_writer.reopen()
        log_writer.write(b"one\n")
        assert read_until(reader, 4) == b"one\n"


def test_a_failed_reopen_keeps_the_old_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "log"
    with LogWriter(str(path)) as log_writer:
        folder.rename(tmp_path / "moved")
        log_writer.reopen()
        log_writer.write(b"one\n")
    assert (tmp_path / "moved" / "log").read_bytes() == b"one\n"
    assert "cannot reopen: No such file" in caplog.text


def test_a_pipe_without_a_reader_is_logged_once_and_its_lines_counted(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    os.close(reader)
    with LogWriter(writer) as log_writer:
        for expected in range(1, 4):
            log_writer.write(b"one\n")
            eventually(lambda: log_writer.dropped == expected)  # noqa: B023
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "cannot write: Broken pipe" in caplog.text


def test_writing_goes_on_after_a_full_disk_and_the_loss_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with LogWriter(str(path)) as log_writer:
        log_writer.write(b"lost\nlost\n")
        eventually(lambda: log_writer.dropped == 2)
        path.unlink()
        log_writer.reopen()
        log_writer.write(b"kept\n")
    assert path.read_bytes() == b"kept\n"
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert "2 lines were lost" in caplog.text


def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LogWriter(str(path)) as log_writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            log_writer.write(b"whole\ncut in two\n")
            eventually(lambda: log_writer.dropped)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log_writer.write(b"whole again\n")
    assert path.read_bytes() == b"whole\ncut \nwhole again\n"


def test_a_batch_that_fails_half_way_is_counted_by_line(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    lines = capacity // len(LINE) * 2
    with LogWriter(writer) as log_writer:
        log_writer.write(LINE * lines)
        got = read_until(reader, 4096)
        os.close(reader)
        eventually(lambda: log_writer.dropped)
    assert 0 < log_writer.dropped <= lines - len(got) // len(LINE)


def test_closing_does_not_wait_for_a_reader_that_sleeps(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    log_writer = LogWriter(writer)
    log_writer.write(LINE * 8192)
    log_writer.write(b"second\n")
    os.set_blocking(reader, False)
    log_writer.close(timeout_s=0.05)
    log_writer.write(b"after\n")
    assert log_writer.dropped >= 1
    assert caplog.records
    # Let the thread go.
    with suppress(BlockingIOError):
        while log_writer._thread.is_alive() or select.select([reader], [], [], 0)[0]:
            select.select([reader], [], [], 0.05)
            with suppress(BlockingIOError):
                os.read(reader, 1 << 20)


def test_a_non_blocking_pipe_that_is_never_read_ends_with_its_writer(pipe: tuple[int, int]) -> None:
    _reader, writer = pipe
    os.set_blocking(writer, False)
    log_writer = LogWriter(writer)
    log_writer.write(LINE * 8192)
    log_writer.close(timeout_s=0.01)
    eventually(lambda: not log_writer._thread.is_alive())
    assert log_writer.dropped > 0


def test_a_closed_writer_drops_and_counts(tmp_path: Path) -> None:
    log_writer = LogWriter(str(tmp_path / "log"))
    log_writer.close()
    log_writer.reopen()
    log_writer.write(b"late\n")
    assert log_writer.dropped == 1
    assert not log_writer._thread.is_alive()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(5):
        with LogWriter(str(tmp_path / "log")) as log_writer:
            log_writer.reopen()
            log_writer.write(b"one\n")
    assert descriptors() == before


def test_own_messages_have_room_beyond_the_bound_and_what_is_lost_is_reported(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    with LogWriter(writer, bound=len(LINE), on_capacity=lambda: None) as log_writer:
        # More than the pipe and the room for own messages take.
        for _ in range(40_000):
            log_writer.offer(LINE)
        assert log_writer.dropped
        log_writer.write(LINE)
        kept = 40_001 - log_writer.dropped
        assert read_until(reader, kept * len(LINE)).count(LINE) == kept
        eventually(lambda: "lines of this log were lost: nobody has read" in caplog.text)
        assert f"{log_writer.dropped} lines" in caplog.text


def test_the_thread_gets_no_signals() -> None:
    with open(os.devnull, "wb") as null, LogWriter(null.fileno()) as log_writer:  # noqa: PTH123
        thread = log_writer._thread
        status = Path(f"/proc/self/task/{thread.native_id}/status")
        eventually(lambda: "SigBlk:\t0000000000000000" not in status.read_text())
        (mask,) = re.findall(r"SigBlk:\t(\w+)", status.read_text())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            assert int(mask, 16) >> (number - 1) & 1
