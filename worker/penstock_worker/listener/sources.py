"""Where a worker's connections come from: links, a passed socket, or a port of its own, beside
which there may be a unix socket for the proxies.

Owns the step from the contract's variables to a socket, or to one line that says why there is
none. Must not know who serves the socket, and reads no environment itself.

A port of its own is only bound here, and listens later (`Source.listen`). So a port in use is
found before the program opens its database, and no client connects before the program serves.
"""

import errno
import os
import socket
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from penstock_worker.contract import HOST, LISTEN_FDS, LISTEN_PID, LISTEN_START, PORT, SOCKET
from penstock_worker.handoff import receiver
from penstock_worker.listener import link_socket
from penstock_worker.net.somaxconn import max_backlog

_DEFAULT_HOST: Final = "127.0.0.1"
_LAST_PORT: Final = 65_535
_MAX_PASSED: Final = 1024
_TYPES: Final = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}


class ListenError(Exception):
    """Why there is no socket to serve, in one line."""

    in_use = False
    """Another process has the port. At the next start it may be free, or another port is given."""


class Source(NamedTuple):
    """A socket that connections come from, or datagrams."""

    kind: Literal["link", "stream", "datagram"]
    sock: socket.socket
    own: bool = False
    """It was bound here, to a port of the worker's own."""
    other_links: tuple[socket.socket, ...] = ()
    """Links to all proxies after the first."""
    link: socket.socket | None = None
    """A unix socket for the proxies, beside a port of the worker's own."""

    def close(self) -> None:
        for sock in (self.sock, *self.other_links, *([self.link] if self.link else [])):
            sock.close()

    def listen(self) -> None:
        """Listen, unless it listens already. ListenError if another process has the port."""
        for sock in (self.sock, self.link):
            # A passed socket that listens already keeps the queue length that was chosen for it.
            if sock is None or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            try:
                sock.listen(max_backlog())
            except OSError as error:
                raise listen_error(sock, error) from error


def find_source(environ: Mapping[str, str]) -> Source:
    """The links, the passed socket or the own port that `environ` names; or ListenError."""
    try:
        links = receiver.inherited(environ)
    except ValueError as error:
        raise ListenError(str(error)) from None
    if links:
        return Source("link", links[0], other_links=links[1:])
    return passed_socket(environ) or _own_source(environ)


def _own_source(environ: Mapping[str, str]) -> Source:
    # The port first: who has it has the path, too.
    port, path = own_port(environ), environ.get(SOCKET, "")
    if not path:
        return Source("stream", port, own=True)
    try:
        return Source("stream", port, own=True, link=link_socket.bind(path))
    except OSError as error:
        port.close()
        raise _cannot_listen(f"unix:{path}", error) from error


def passed_socket(environ: Mapping[str, str]) -> Source | None:
    """Adopt the first of the passed sockets; None if there are none."""
    count = environ.get(LISTEN_FDS)
    if count is None or environ.get(LISTEN_PID, str(os.getpid())) != str(os.getpid()):
        # The variables were meant for a parent of this process.
        return None
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= _MAX_PASSED):
        raise ListenError(f"{LISTEN_FDS}={count!r} is not a number of sockets")
    try:
        for fd in range(LISTEN_START, LISTEN_START + int(count)):
            os.set_inheritable(fd, False)
        sock = socket.socket(fileno=LISTEN_START)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ListenError(
            f"{LISTEN_FDS}={count}, but not all of them are there: {reason}"
        ) from None
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        if sock.type == socket.SOCK_DGRAM:
            return Source("datagram", sock)
        if sock.type == socket.SOCK_STREAM:
            return Source("stream", sock)
    sock.detach()
    raise ListenError(f"descriptor {LISTEN_START} is no TCP, UDP or unix socket to serve")


def own_port(
    environ: Mapping[str, str], kind: Literal["stream", "datagram"] = "stream"
) -> socket.socket:
    """Bind to HOST and PORT, or ListenError. PORT=0 takes any free one."""
    port = _port(environ)
    host = environ.get(HOST, "").strip("[]") or _DEFAULT_HOST
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return _bound(host, port, _TYPES[kind])
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(shown, error) from error


def listen_error(sock: socket.socket, error: OSError) -> ListenError:
    """The error for a bound socket that cannot listen: another process listens already."""
    return _cannot_listen(address(sock), error)


def address(sock: socket.socket) -> str:
    """Where it is bound, as in a URL."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get(PORT)
    if text is None:
        raise ListenError(f"{PORT} is not set; it names the port to listen on, as in {PORT}=9001")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _LAST_PORT):
        raise ListenError(f"{PORT}={text!r} is not a port: a number up to {_LAST_PORT} is")
    return int(text)


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family, _, protocol, _, where = socket.getaddrinfo(
        host, port, type=kind, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            # Without it, a restarted worker would have to wait for its predecessor's TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _cannot_listen(shown: str, error: OSError | UnicodeError) -> ListenError:
    failure = ListenError(f"cannot listen on {shown}: {_reason(error)}")
    failure.in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    return failure


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "unknown host"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return os.strerror(error.errno).lower() if error.errno else str(error)
