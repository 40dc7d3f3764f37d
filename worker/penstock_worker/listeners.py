"""Where a worker's connections come from: so far, a port of its own.

Owns the step from the contract's variables to a bound socket, and says in one line why
there is none. It does not know who serves the socket, and reads no environment itself.

Binding is all that is done here; whoever serves the socket listens. So a port that is taken
is found before the program has opened its database, and nobody is let in before it has.
"""

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from penstock_worker.contract import HOST, PORT

BACKLOG: Final = 4096
"""More than that in the queue is not a burst; the kernel cuts it to its own limit anyway."""
_DEFAULT_HOST: Final = "127.0.0.1"
_LAST_PORT: Final = 65_535


class ListenError(Exception):
    """There is no socket to serve, and why, in one line."""


def own_port(environ: Mapping[str, str]) -> socket.socket:
    """Bind to HOST and PORT; ListenError if that cannot be. PORT=0 takes any free one."""
    port = _port(environ)
    host = environ.get(HOST, "").strip("[]") or _DEFAULT_HOST
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return _bound(host, port)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"cannot listen on {shown}: {_why(error)}") from error


def backlog() -> int:
    """How many may wait to be accepted."""
    return min(BACKLOG, _somaxconn())


def refused(sock: socket.socket, error: OSError) -> ListenError:
    """The error for a socket that was bound and may not listen: another was quicker."""
    return ListenError(f"cannot listen on {address(sock)}: {_why(error)}")


def address(sock: socket.socket) -> str:
    """Where it is bound, as in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get(PORT)
    if text is None:
        raise ListenError(f"{PORT} is not set; it names the port to listen on, as in {PORT}=9001")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _LAST_PORT):
        raise ListenError(f"{PORT}={text!r} is not a port: a number up to {_LAST_PORT} is")
    return int(text)


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # A restarted worker would otherwise wait for its predecessor's TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "unknown host"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _somaxconn() -> int:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return BACKLOG
