"""Every line of a child comes out once, whole, with its name; a full queue holds the child back."""

import asyncio
import os
import pty
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.output import MAX_LINE, Capture, Output, split_lines
from penstock_worker.telemetry.log_writer import LogWriter


class BufferWriter:
    """Where lines go, with as much room as a test wants."""

    def __init__(self) -> None:
        self.text = b""
        self.offered = b""
        self.full = False

    def write(self, lines: bytes) -> None:
        self.text += lines

    def offer(self, lines: bytes) -> None:
        self.offered += lines


class Pipe:
    """The child's end of a pipe, and the capture at the other end."""

    def __init__(self, *, can_wait: bool = True) -> None:
        reading_end, self.theirs = os.pipe()
        os.set_blocking(reading_end, False)
        os.set_blocking(self.theirs, False)
        self.written = BufferWriter()
        self.closed: list[Capture] = []
        self.capture = Capture(
            asyncio.get_running_loop(), reading_end, b"web/0 | ", self.written, self.closed.append,
            can_wait=can_wait,
        )  # fmt: skip

    def send(self, data: bytes) -> None:
        os.write(self.theirs, data)

    def fill(self) -> None:
        """Write until the kernel takes no more."""
        with suppress(BlockingIOError):
            while True:
                self.send(b"y" * 65_536)

    def end(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    made = Pipe()
    yield made
    made.end()
    made.capture.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.005)


async def test_every_line_gets_the_prefix(pipe: Pipe) -> None:
    pipe.send(b"one\ntwo\n\n")
    await until(lambda: pipe.written.text.count(b"\n") == 3)
    assert pipe.written.text == b"web/0 | one\nweb/0 | two\nweb/0 | \n"


async def test_a_line_in_pieces_is_one_line(pipe: Pipe) -> None:
    pipe.send(b"hel")
    pipe.capture.drain()
    assert pipe.written.text == b""
    pipe.send(b"lo\r\n")
    await until(lambda: bool(pipe.written.text))
    assert pipe.written.text == b"web/0 | hello\n"


async def test_a_last_line_without_an_end_is_not_lost(pipe: Pipe) -> None:
    pipe.send(b"Segmentation fault")
    pipe.end()
    await until(lambda: pipe.capture.closed)
    assert pipe.written.text == b"web/0 | Segmentation fault\n"
    assert pipe.closed == [pipe.capture]


async def test_output_of_an_ended_child_can_be_read_at_once(pipe: Pipe) -> None:
    pipe.send(b"fatal: no database\n")
    pipe.capture.drain()
    assert pipe.written.text == b"web/0 | fatal: no database\n"


async def test_a_full_queue_holds_the_child_back(pipe: Pipe) -> None:
    pipe.written.full = True
    pipe.send(b"x" * 1000 + b"\n")
    await until(lambda: bool(pipe.written.text))
    pipe.fill()
    held = len(pipe.written.text)
    pipe.capture.resume()
    await asyncio.sleep(0)
    assert len(pipe.written.text) == held

    pipe.written.full = False
    pipe.capture.resume()
    pipe.end()
    await until(lambda: pipe.capture.closed)
    assert pipe.written.text.count(b"y") >= 65_536


async def test_closing_twice_is_closing_once(pipe: Pipe) -> None:
    pipe.capture.close()
    pipe.capture.close()
    pipe.capture.resume()
    assert pipe.closed == [pipe.capture]


@given(st.lists(st.binary(max_size=3 * MAX_LINE), max_size=8))
def test_no_piece_is_too_long_and_no_byte_is_lost(pieces: list[bytes]) -> None:
    rest, lines = b"", []
    for piece in pieces:
        *whole, rest = split_lines(rest + piece.replace(b"\r", b""))
        lines += whole
    lines.append(rest)
    assert all(len(line) <= MAX_LINE and b"\n" not in line for line in lines)
    assert b"".join(lines) == b"".join(pieces).replace(b"\n", b"").replace(b"\r", b"")


def test_a_line_of_many_megabytes_comes_in_pieces() -> None:
    assert [len(line) for line in split_lines(b"x" * (2 * MAX_LINE + 5))] == [MAX_LINE, MAX_LINE, 5]


class Destination:
    """Stdout and stderr of this process, and what was written to them."""

    def __init__(self) -> None:
        self.out, self.out_end = os.pipe()
        self.err, self.err_end = os.pipe()

    def read(self) -> tuple[bytes, bytes]:
        os.close(self.out_end)
        os.close(self.err_end)
        texts = os.read(self.out, 65_536), os.read(self.err, 65_536)
        os.close(self.out)
        os.close(self.err)
        return texts


def pipe_with(text: bytes) -> int:
    reading_end, theirs = os.pipe()
    os.set_blocking(reading_end, False)
    os.write(theirs, text)
    os.close(theirs)
    return reading_end


async def test_stdout_goes_to_stdout_and_stderr_to_stderr() -> None:
    to = Destination()
    loop = asyncio.get_running_loop()
    with closing(Output(loop, stdout=to.out_end, stderr=to.err_end)) as output:
        captures = output.capture("web/0", pipe_with(b"good\n"), pipe_with(b"bad\n"))
        await until(lambda: all(capture.closed for capture in captures))
    assert to.read() == (b"web/0 | good\n", b"web/0 | bad\n")


async def test_a_proxy_writes_to_stderr_only() -> None:
    to = Destination()
    loop = asyncio.get_running_loop()
    with closing(Output(loop, stdout=to.out_end, stderr=to.err_end)) as output:
        (capture,) = output.capture("proxy/0", None, pipe_with(b"hm\n"))
        await until(lambda: capture.closed)
    assert to.read() == (b"", b"proxy/0 | hm\n")


async def test_closing_reads_the_remaining_output() -> None:
    to = Destination()
    loop = asyncio.get_running_loop()
    with closing(Output(loop, stdout=to.out_end, stderr=to.err_end)) as output:
        output.capture("web/0", pipe_with(b"last words"), pipe_with(b""))
    assert to.read() == (b"web/0 | last words\n", b"")


async def test_names_are_coloured_on_a_terminal_only() -> None:
    reading_end, terminal = pty.openpty()
    to = Destination()
    loop = asyncio.get_running_loop()
    with closing(Output(loop, stdout=terminal, stderr=to.err_end)) as output:
        output.capture("web/0", pipe_with(b"good\n"), pipe_with(b"bad\n"))
        output.capture("web/1", pipe_with(b"good\n"), pipe_with(b""))
    os.close(terminal)
    shown = b""
    with suppress(OSError):
        while data := os.read(reading_end, 4096):
            shown += data
    os.close(reading_end)
    assert b"\x1b[36mweb/0 |\x1b[0m good" in shown
    assert b"\x1b[33mweb/1 |\x1b[0m good" in shown
    assert to.read()[1] == b"web/0 | bad\n"


async def test_a_child_that_must_not_wait_is_read_although_the_queue_is_full() -> None:
    pipe = Pipe(can_wait=False)
    pipe.written.full = True
    pipe.send(b"one\n")
    await until(lambda: pipe.written.offered == b"web/0 | one\n")
    pipe.send(b"two\n")
    await until(lambda: pipe.written.offered.endswith(b"web/0 | two\n"))
    assert pipe.written.text == b""
    pipe.end()
    pipe.capture.close()


async def test_a_writer_that_others_use_as_well_stays_open() -> None:
    reader, writer = os.pipe()
    shared = LogWriter(writer)
    output = Output(asyncio.get_running_loop(), stdout=writer, stderr=shared)
    shared.offer(b"before\n")
    output.close()
    shared.offer(b"after\n")
    shared.close()
    assert os.read(reader, 100) == b"before\nafter\n"
    assert output.lines_lost == 0
    os.close(reader)
    os.close(writer)
