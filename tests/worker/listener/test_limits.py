"""A worker that serves clients directly limits idle time, heads and connections.

Covers `servers/asgi_limits`, `servers/aiohttp_server` and `servers/asgi_server`.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from penstock_worker.contract import BOUNDS
from penstock_worker.listener.limits import DirectLimits, format_limits, parse_limits

if TYPE_CHECKING:
    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 30.0
APPS = ("aio:app", "asg:app")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = DirectLimits(direct=True, keepalive_s=0.3)


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


def connected(listener: socket.socket) -> socket.socket:
    client = socket.create_connection(listener.getsockname())
    client.settimeout(DEADLINE_S)
    return client


def served(serve: "Serve", spec: str, port: socket.socket, limits: DirectLimits) -> "Served":
    return serve(
        spec, passed=port, PENSTOCK_SCHEME="shared", PENSTOCK_BOUNDS=format_limits(limits)
    ).ready()


def test_limits_are_parsed_as_they_were_formatted() -> None:
    limits = DirectLimits(direct=True, connections=5, keepalive_s=1.5, log_field=64)
    assert parse_limits({BOUNDS: format_limits(limits)}) == limits
    assert parse_limits({}) == DirectLimits()


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"direct": true}'])
def test_malformed_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        parse_limits({BOUNDS: text})


@pytest.mark.parametrize("spec", APPS)
@pytest.mark.parametrize("sent", [b"", GET[:20]], ids=["nothing", "half a head"])
def test_a_client_that_never_sends_a_whole_head_is_closed(
    serve: "Serve", spec: str, sent: bytes, port: socket.socket
) -> None:
    served(serve, spec, port, QUICK)
    with connected(port) as client:
        client.sendall(sent)
        assert client.recv(4096) == b""


@pytest.mark.parametrize("spec", APPS)
def test_a_client_that_sends_half_of_a_second_head_is_closed(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served(serve, spec, port, QUICK)
    with connected(port) as client:
        client.sendall(GET)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.sendall(GET[:20])
        while client.recv(4096):
            pass


@pytest.mark.parametrize(("spec", "status"), [("aio:app", b"400"), ("asg:app", b"431")])
def test_an_endless_head_is_refused(
    serve: "Serve", spec: str, status: bytes, port: socket.socket
) -> None:
    served(serve, spec, port, DirectLimits(direct=True))
    answer = b""
    with connected(port) as client, suppress(ConnectionError):
        client.sendall(GET[:-2] + b"X: ")
        for _ in range(80):
            client.sendall(b"y" * 1024)
        while piece := client.recv(4096):
            answer += piece
    # A reset may overtake the answer; either is an end.
    assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status)) or not answer


@pytest.mark.parametrize("spec", APPS)
def test_a_large_body_does_not_count_as_a_head(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served(serve, spec, port, DirectLimits(direct=True))
    with connected(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
        client.sendall(b"z" * 200_000 + GET[:-2] + b"Connection: close\r\n\r\n")
        answers = b"".join(iter(lambda: client.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b" 431 " not in answers


def test_at_the_connection_limit_the_next_client_waits_until_one_ends(
    serve: "Serve", port: socket.socket
) -> None:
    worker = served(serve, "aio:app", port, DirectLimits(direct=True, connections=1))
    with connected(port) as first:
        first.sendall(GET)
        assert first.recv(4096).startswith(b"HTTP/1.1 200")
        second = connected(port)
        second.sendall(GET)
        assert worker.stats()["fds"]["client"] == 1
    with second:
        assert second.recv(4096).startswith(b"HTTP/1.1 200")


def test_malformed_limits_are_a_failure_in_one_line(serve: "Serve", port: socket.socket) -> None:
    reason = serve("aio:app", passed=port, PENSTOCK_BOUNDS="?").receive()["reason"]
    assert reason == f"{BOUNDS}='?' says nothing"
