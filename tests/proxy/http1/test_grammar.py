"""Each row of docs/http-grammar.md is what the proxy does, and each message is one message.

What a worker gets is read by h11 and llhttp in one way; what a client gets, by h11.
"""

import re
from pathlib import Path
from typing import Final

import pytest
from tests.proxy.conftest import Harness
from tests.support.grammar import Row
from tests.support.grammar.requests import REQUESTS
from tests.support.grammar.responses import RESPONSES
from tests.support.proxy.readings import (
    ReadingDiffersError,
    h11_request,
    h11_response,
    llhttp_request,
)

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "http-grammar.md"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_document_and_the_table_have_the_same_rows() -> None:
    requests, responses = DOCUMENT.read_text().split("\n# Responses\n")
    for text, table in ((requests, REQUESTS), (responses, RESPONSES)):
        cells = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines()
            if line.startswith("| ") and not line.startswith("| what |")
        ]
        assert [(row[0], row[2]) for row in cells] == [
            (name, row.verdict) for name, row in table.items()
        ]
        assert all(re.fullmatch(r"91(10|12) §[\d.]+", row[3]) for row in cells)


def pieces(data: bytes, *, bytewise: bool) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))] if bytewise else [data]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_taken_repaired_or_refused(
    harness: Harness, name: str, *, bytewise: bool
) -> None:
    verdict, examples = REQUESTS[name]
    for sent, part in examples:
        harness.build()
        client = harness.client()
        for piece in pieces(sent, bytewise=bytewise and len(sent) < 9999):
            client.send(piece)
        if verdict.isdigit():
            assert client.received().startswith(f"HTTP/1.1 {verdict} ".encode()), sent
            assert client.ended
            client.reset()
            continue
        got = bytes(harness.worker.written)
        first, second = h11_request(got), llhttp_request(got, len(got))
        assert (first.end, first) == (len(got), second), sent
        if verdict == "dropped":
            assert part in sent.lower()
            assert part not in got.lower(), sent
        else:
            assert part in got, sent
        harness.worker.written.clear()
        harness.worker.send(OK)
        assert h11_response(client.received(), sent.split(b" ")[0].lstrip()).start[0] == b"200"
        client.reset()


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_is_taken_repaired_or_refused(
    harness: Harness, name: str, *, bytewise: bool
) -> None:
    verdict, examples = RESPONSES[name]
    for sent, part in examples:
        harness.build()
        client = harness.client()
        client.send(GET)
        for piece in pieces(sent, bytewise=bytewise):
            harness.worker.send(piece)
        data = client.received()
        check_response(data, Row(verdict, ((sent, part),)), lost=client.lost)
        client.reset()


def check_response(data: bytes, row: Row, *, lost: bool) -> None:
    ((sent, part),) = row.examples
    if row.verdict == "cut":
        assert lost
        with pytest.raises(ReadingDiffersError, match="peer closed"):
            h11_response(data, ended=True)
    elif row.verdict == "502":
        final = re.sub(rb"\A(HTTP/1\.1 1(?s:.)*?\r\n\r\n)*", b"", data)
        assert final.startswith(b"HTTP/1.1 502 "), sent
    elif row.verdict == "dropped":
        assert data.startswith(b"HTTP/1.1 ")
        assert part in sent.lower()
        assert part not in data.lower(), sent
    else:
        assert part in data or part == bytewise_chunks(data, part), sent


def bytewise_chunks(data: bytes, part: bytes) -> bytes:
    """A part of a body that arrived byte by byte is in chunks of a byte each."""
    chunks = part.replace(b"2\r\nok\r\n", b"1\r\no\r\n1\r\nk\r\n")
    return part if chunks in data else b""
