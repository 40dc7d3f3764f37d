"""Fuzzers find nothing, neither in the corpus nor in a few seconds of search.

The oracle is tested as well: the corpus catches any grammar that is a little laxer.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fuzz import campaign, oracle
from tests.fuzz.seed import CORPUS, seeds
from tests.support.proxy.readings import ReadingDiffersError

from penstock_proxy.http import worker_connection
from penstock_proxy.http1 import chunked, parser
from penstock_proxy.http1.chunked import Chunked

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKS = {"requests": oracle.check_request, "responses": oracle.check_response}
FILES = {name: sorted((CORPUS / name).iterdir()) for name in CHECKS}
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60" if os.environ.get("CI") == "true" else "5"))


@pytest.fixture(scope="module")
def stage() -> Iterator[oracle.Stage]:
    stage = oracle.Stage()
    yield stage
    stage.close()


def test_the_corpus_has_every_known_trick() -> None:
    assert {path: path.read_bytes() for path in seeds()} == seeds(), (
        "run: python -m tests.fuzz.seed"
    )


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_in_the_corpus_is_read_in_two_ways(stage: oracle.Stage, name: str) -> None:
    for path in FILES[name]:
        assert_read_in_one_way(stage, name, path)


def assert_read_in_one_way(stage: oracle.Stage, name: str, path: Path) -> None:
    try:
        CHECKS[name](stage, path.read_bytes())
    except (AssertionError, ReadingDiffersError) as error:
        raise AssertionError(path) from error


def lax(pattern: "re.Pattern[bytes]", old: bytes, new: bytes) -> "re.Pattern[bytes]":
    assert old in pattern.pattern
    return re.compile(pattern.pattern.replace(old, new), pattern.flags)


FAULTS = {
    "chunk sizes end with LF": ("_CHUNK_LINE", rb"\r\n", rb"\r?\n"),
    "blanks behind a size": ("_CHUNK_LINE", rb"\r\n", rb"[ \t]*\r\n"),
    "a size behind blanks": ("_CHUNK_LINE", rb"(?=", rb"[ \t]*(?="),
    "any blank in an extension": ("_CHUNK_LINE", rb"[ \t]*+;", rb"[ \t\x0b\x0c]*+;"),
    "an extension without a name": ("_CHUNK_LINE", rb"++(?:[ \t]*+=", rb"*+(?:[ \t]*+="),
    "controls in a value": ("FIELDS", rb"\x20-\x7e", rb"\x01-\x09\x0b\x0c\x0e-\x7e"),
    "NUL in a value": ("FIELDS", rb"[\t\x20", rb"[\x00\t\x20"),
    "bare CR in a value": (
        "FIELDS", rb"[\t\x20-\x7e\x80-\xff]*+", rb"(?:[\t\x20-\x7e\x80-\xff]|\r(?!\n))*+",
    ),
    "a blank before the colon": ("FIELDS", rb"++:", rb"++ ?:"),
    "fields without a name": ("FIELDS", rb"++:", rb"*+:"),
    "trailers that frame": ("_FRAMING_IN_TRAILERS", rb"transfer-encoding", rb"never"),
    "two spaces in a request line": ("_REQUEST_LINE", rb") (", rb") {1,2}("),
    "targets beyond ASCII": ("_REQUEST_LINE", rb"\x24-\x7e", rb"\x23-\x7e\x80-\xff"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_grammar_that_is_laxer_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, old: bytes, new: bytes
) -> None:
    for module in (parser, chunked):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lax(getattr(module, name), old, new))
    assert catches()


def catches() -> bool:
    """Does anything in the corpus break the oracle?"""
    with closing(oracle.Stage()) as stage:
        for name, check in CHECKS.items():
            for path in FILES[name]:
                try:
                    check(stage, path.read_bytes())
                except (AssertionError, ReadingDiffersError):
                    return True
    return False


def test_a_chunk_that_may_end_with_anything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    read_size_line = Chunked._read_size_line

    def any_two_bytes(self: Chunked, data: bytes, at: int) -> int:
        if self._left == -2 and len(data) >= at + 2:
            self._left, at = 0, at + 2
            return read_size_line(self, data, at) if at < len(data) else at
        return read_size_line(self, data, at)

    monkeypatch.setattr(Chunked, "_read_size_line", any_two_bytes)
    assert catches()


def test_a_cut_answer_that_looks_whole_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: worker_connection.WorkerConnection, error: Exception | None) -> None:
        self._on_lost(self)
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.response_complete(b"")

    monkeypatch.setattr(worker_connection.WorkerConnection, "connection_lost", lost)
    assert catches()


def test_bytes_left_over_for_the_next_request_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def data_received(self: worker_connection.WorkerConnection, data: bytes) -> None:
        if self.receiver is None:
            self._buffer = data  # it would be read as the beginning of the next response
        else:
            received(self, data)

    received = worker_connection.WorkerConnection.data_received
    monkeypatch.setattr(worker_connection.WorkerConnection, "data_received", data_received)
    assert catches()


def test_a_fuzzer_finds_nothing(
    tmp_path: Path, record_property: "Callable[[str, object], None]"
) -> None:
    pytest.importorskip("atheris")
    results = campaign.run(SECONDS, 1, tmp_path)
    for result in results:
        record_property("fuzzed", f"{result.name}: {result.executions} executions")
    assert not [result.output[-3000:] for result in results if result.found]
    assert all(result.executions for result in results)
