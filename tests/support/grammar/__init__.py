"""What the proxy does with each form of HTTP/1, row by row as in docs/http-grammar.md.

A row has messages, each with what the other side gets of it: a part of that for what is taken or
repaired, and a word that is not in it for what is dropped.
"""

from typing import Final, NamedTuple

HOST: Final = b"Host: a\r\n"
LENGTH: Final = b"Content-Length: 2\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\n"


class Row(NamedTuple):
    verdict: str
    examples: tuple[tuple[bytes, bytes], ...]
    """What is sent, and what the other side gets."""


def get(fields: bytes = b"", start: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    return start + b"\r\n" + host + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


def chunks(body: bytes) -> bytes:
    return post(CHUNKED, body)


def answer(fields: bytes, body: bytes = b"ok") -> bytes:
    return OK + fields + b"\r\n" + body


def answer_chunks(body: bytes) -> bytes:
    return answer(CHUNKED, body)
