"""Whatever is at a path, reading it ends: with its content, or with one line that says why not."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock_supervisor.config import file_access
from penstock_supervisor.config.file_access import (
    SETTLED_S,
    UnusableFileError,
    read_given,
    read_regular,
    read_settled,
    why_no_directory,
)

LIMIT = 1 << 20
LONG_NAME = "x" * 300


def test_a_regular_file_is_read_also_over_a_link_and_at_the_bound(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"x" * LIMIT)
    link.symlink_to(file)
    for read in (read_regular, read_given, read_settled):
        assert read(link, LIMIT) == b"x" * LIMIT


@pytest.mark.parametrize("read", [read_regular, read_given, read_settled])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b"x" * (LIMIT + 1)), "too large: at most 1024 KiB"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a regular file, and it is a device"),
        (lambda path: path.symlink_to("/dev/null"), "expected a regular file, and it is a device"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("none"), "No such file or directory"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_file_of_that_size_is_one_line(
    tmp_path: Path, read: Callable[[Path, int], bytes], make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(UnusableFileError) as failure:
        read(path, LIMIT)
    assert str(failure.value) == why


@pytest.mark.parametrize("read", [read_regular, read_given, read_settled])
@pytest.mark.parametrize(
    ("name", "why"), [(LONG_NAME, "File name too long"), ("a\0b", "not a path")]
)
def test_a_name_that_cannot_be_one_is_one_line(
    tmp_path: Path, read: Callable[[Path, int], bytes], name: str, why: str
) -> None:
    with pytest.raises(UnusableFileError, match=why):
        read(tmp_path / name, LIMIT)


@pytest.mark.parametrize("read", [read_regular, read_settled])
def test_a_fifo_is_not_waited_for(tmp_path: Path, read: Callable[[Path, int], bytes]) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnusableFileError, match="and it is a FIFO"):
        read(tmp_path / "fifo", LIMIT)


def test_what_is_exchanged_between_two_looks_does_not_hang_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(Path, "stat", lambda _: os.lstat(__file__))
    with pytest.raises(UnusableFileError, match="and it is a FIFO"):
        read_regular(tmp_path / "file", LIMIT)


def test_a_person_may_give_a_pipe_and_what_comes_out_of_it_has_a_bound(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for size, is_read in ((5, True), (LIMIT + 1, False)):
        writer = threading.Thread(target=write_pipe, args=(tmp_path / "fifo", size))
        writer.start()
        try:
            assert read_given(tmp_path / "fifo", LIMIT) == b"x" * size
            assert is_read
        except UnusableFileError:
            assert not is_read
        writer.join(10)


def write_pipe(path: Path, size: int) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            file.write(b"x" * size)
    except BrokenPipeError:
        pass


def test_an_unnamed_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    assert read_given(Path(f"/proc/self/fd/{reader}"), LIMIT) == b"abc"
    os.close(reader)


class Writer:
    """Writes the file anew while the reader is asleep: `versions` one after the other."""

    def __init__(self, path: Path, *versions: bytes) -> None:
        self.path, self.versions, self.slept = path, list(versions), list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.versions:
            self.path.write_bytes(self.versions.pop(0))
            # Two writes in one tick of the clock have the same time.
            changed_ns = len(self.slept) * 10_000_000 + self.path.stat().st_mtime_ns
            os.utime(self.path, ns=(changed_ns, changed_ns))

    def read(self) -> bytes:
        now = self.path.stat().st_mtime
        return read_settled(self.path, LIMIT, now=lambda: now, sleep=self.sleep)


def test_a_file_that_was_changed_a_moment_ago_is_looked_at_twice(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    writer = Writer(tmp_path / "file")
    assert writer.read() == b"first"
    assert writer.slept == [SETTLED_S]


def test_an_old_file_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    later = (tmp_path / "file").stat().st_ctime + 60.0
    slept: list[float] = []
    found = read_settled(tmp_path / "file", LIMIT, now=lambda: later, sleep=slept.append)
    assert (found, slept) == (b"first", [])


def test_a_file_that_is_written_while_it_is_read_is_read_when_it_is_complete(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = Writer(tmp_path / "file", b"half", b"whole")
    assert writer.read() == b"whole"


def test_a_file_that_is_written_all_the_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = Writer(tmp_path / "file", *(b"x" * size for size in range(100)))
    with pytest.raises(UnusableFileError, match="it is being written; write another file and re"):
        writer.read()
    assert writer.versions


def test_a_change_during_the_reading_itself_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read, changes = tmp_path / "file", os.read, [b"two", b"three"]
    file.write_bytes(b"first")
    later = file.stat().st_ctime + 60.0

    def read_and_change(fd: int, size: int) -> bytes:
        data = read(fd, size)
        if changes:
            file.write_bytes(changes.pop())
        return data

    monkeypatch.setattr(os, "read", read_and_change)
    monkeypatch.setattr(file_access, "SETTLED_S", 0.0)
    assert read_settled(file, LIMIT, now=lambda: later, sleep=lambda _: None) == b"two"
    changes[:] = [b"5", b"four"]
    assert read_given(file, LIMIT) == b"5"
    changes[:] = [b"x" * size for size in range(10_000)]
    with pytest.raises(UnusableFileError, match="it is being written"):
        read_given(file, LIMIT)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", ""),
        ("none", "no such directory"),
        ("file", "not a directory"),
        ("file/below", "not a directory"),
        (LONG_NAME, "file name too long"),
        ("a\0b", "not a path"),
    ],
)
def test_why_there_is_no_directory(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    assert why_no_directory(tmp_path / name) == why


def test_a_directory_in_a_folder_that_is_closed_to_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> os.stat_result:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "stat", closed)
    assert why_no_directory(tmp_path) == "permission denied"
