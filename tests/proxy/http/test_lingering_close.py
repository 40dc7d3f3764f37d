"""An answer that comes while its client sends is read by that client, over TCP and over TLS.

With real sockets: the kernel's buffers are smaller than what is sent.
Covers `http/client_closing`.
"""

import asyncio
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.proxy.certificates import send_certificate, trusting
from tests.support.proxy.running_proxy import WAIT_S, running_proxy, until

from penstock_proxy.config import Limits

SIZE = 32 << 20
PIECE = b"x" * (64 << 10)


def upload(port: int, pieces: int, tls: dict[str, Any]) -> tuple[bytes, int]:
    """A client that sends all before it reads. Returns what it reads then, and what it has sent."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
        if tls:
            context = tls["ssl"]
            sock = context.wrap_socket(sock, server_hostname=tls["server_hostname"])
            stack.enter_context(sock)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(pieces):
            sock.sendall(PIECE)
        answer = b""
        while data := sock.recv(1 << 16):
            answer += data
        return answer, pieces * len(PIECE)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_an_upload_that_is_refused_reads_why(*, tls: bool) -> None:
    async with running_proxy() as run:
        worker = await run.worker("a")
        limits: dict[str, Any] = {"limits": Limits(body=1 << 20)}
        await run.start(run.service("web", run.target(worker), tls=tls, **limits))
        arguments: dict[str, Any] = {}
        if tls:
            send_certificate(run, "web")
            arguments = trusting()
            await run.stats()
        answer, sent = await asyncio.to_thread(
            upload, run.ports["web"], SIZE // len(PIECE), arguments
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"request body too large\n")
        assert sent == SIZE
        counters = run.proxy.services.by_name["web"].counters
        await until(lambda: counters.active == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_client_that_sends_for_ever_is_ended(
    monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    monkeypatch.setattr("penstock_proxy.http.client_closing.LINGER_S", 1.0)
    async with running_proxy() as run:
        worker = await run.worker("a")
        timeouts = {"body": 1.0}
        await run.start(
            run.service(
                "web",
                run.target(worker),
                tls=tls,
                limits=Limits(body=1 << 20),
                timeouts=timeouts,
            )
        )
        arguments: dict[str, Any] = {}
        if tls:
            send_certificate(run, "web")
            arguments = trusting()
            await run.stats()
        with pytest.raises(OSError):  # noqa: PT011 -- reset, or a broken pipe
            await asyncio.to_thread(upload, run.ports["web"], 1 << 30, arguments)
        counters = run.proxy.services.by_name["web"].counters
        await until(lambda: counters.active == 0)
