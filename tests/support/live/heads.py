"""Heads for tests: a request to send, a worker that answers, fields to read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.live.wire import Wire


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(
    target: str = "/", *fields: str, method: str = "GET", minor: int = 1, body: bytes = b""
) -> bytes:
    lines = [f"{method} {target} HTTP/1.{minor}", "Host: example.org", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def always(reply: bytes, seen: list[bytes] | None = None) -> "Callable[[Wire], None]":
    """A worker that answers every head with the same bytes, and notes what it saw."""

    def answer(wire: "Wire") -> None:
        while True:
            head = wire.head()
            if seen is not None:
                seen.append(head)
            wire.send(reply)

    return answer


def fields_of(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:-2]
    names = [line.partition(":")[0].lower() for line in lines]
    assert len(set(names)) == len(names), head
    return {name: line.partition(":")[2].strip() for name, line in zip(names, lines, strict=True)}
