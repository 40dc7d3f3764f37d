"""One question over a socket that is there already: is it a good answer?

For a health check whose connection was passed to the worker, and not connected to it. The
socket is the caller's, and one check's; what is left of an answer is not read.
"""

import asyncio
import socket
from typing import Final

from penstock_proxy.checker import OK, Verdict
from penstock_proxy.errors import RejectedError
from penstock_proxy.http1 import parse_status_line

_MOST_HEAD: Final = 64 << 10


async def ask(sock: socket.socket, path: str, host: str = "localhost") -> Verdict:
    """GET `path`; 2xx and 3xx are good. OSError when the connection breaks."""
    loop = asyncio.get_running_loop()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: penstock-health\r\n"
        "Connection: close\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > _MOST_HEAD:
            return Verdict("failed", "no HTTP answer: it broke off")
    try:
        status = parse_status_line(head[: head.index(b"\r\n\r\n") + 4]).status
    except RejectedError as error:
        return Verdict("failed", f"no HTTP answer: {error}")
    return OK if 200 <= status < 400 else Verdict("failed", f"HTTP {status}")
