"""A helper process reads its one line, and notices that its pipe is closed."""

import os
import select
from collections.abc import Iterator

import pytest

from penstock_supervisor.compare import stdin_pipe


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a pipe that stands for the standard input."""
    reader, writer = os.pipe()
    monkeypatch.setattr(stdin_pipe, "FD", reader)
    yield writer
    os.close(reader)


def test_the_line_is_read_in_as_many_pieces_as_it_comes(writer: int) -> None:
    with os.fdopen(writer, "wb") as file:
        file.write(b"x" * 60_000)
        file.flush()
        os.write(writer, b"y\n")
        assert stdin_pipe.read_line() == b"x" * 60_000 + b"y\n"
        assert select.select([stdin_pipe.FD], [], [], 0)[0] == [], "it is still open"
    assert select.select([stdin_pipe.FD], [], [], 0)[0] == [stdin_pipe.FD], "it is closed"


def test_a_pipe_that_is_closed_before_the_line_ends_gives_no_line(writer: int) -> None:
    os.write(writer, b"half a li")
    os.close(writer)
    assert stdin_pipe.read_line() is None
