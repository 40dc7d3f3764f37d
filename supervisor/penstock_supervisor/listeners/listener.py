"""Opens listening sockets and keeps them open.

The supervisor keeps every listener open as long as it runs, and children inherit them. So a
proxy can die, and the next one continues with the same accept queue: no client is refused. What
the sockets are for is not known here.

A socket that cannot be opened is a StartError of one line: address, key, reason, and the process
that has the port.

See docs/decisions/0007-supervisor-owns-listeners.md.
"""

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.errors import StartError

BACKLOG: Final = 4096
"""Connections that can wait while a proxy restarts. The kernel limits it to net.core.somaxconn."""
_UNPRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Access(NamedTuple):
    """Mode and owner of a unix socket. A uid or gid of -1 means the supervisor's own."""

    mode: int | None = None
    """None: the default mode under the umask."""
    uid: int = -1
    gid: int = -1


_DEFAULT_ACCESS: Final = Access()

SockAddress = tuple[int, object]
"""A family, and what `getsockname` returns for it."""


class Listener:
    """One listening socket; `key` is its key in the configuration."""

    def __init__(
        self,
        address: str,
        key: str,
        *,
        bind_only: bool = False,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        reuseport: bool = False,
        access: Access = _DEFAULT_ACCESS,
    ) -> None:
        """`bind_only`: take the address now, but refuse connections until `listen`.

        With `kind` SOCK_DGRAM the socket is for datagrams, and does not listen. `reuseport`:
        other sockets of this run will have the same port (SO_REUSEPORT).
        """
        self.key = key
        wanted = parse_address(address)
        self._kind = kind
        self._file_id: tuple[int, int] | None = None
        self._path_lock: _PathLock | None = None
        try:
            if wanted.path:
                self._path_lock = _PathLock(wanted.path)
            self.socket = (
                _open_unix(wanted.path, access)
                if wanted.path
                else _open_inet(wanted, kind, reuseport)
            )
        except OSError as error:
            if self._path_lock is not None:
                self._path_lock.close()
            raise StartError(
                f"cannot listen on {address} ({key}): {_explain(wanted, error)}"
            ) from None
        self.address = self._bound_address(wanted)
        if not bind_only:
            self.listen()

    def listen(self) -> None:
        """From now on clients can connect. StartError: another process was faster."""
        if self._kind == socket.SOCK_DGRAM:
            return
        try:
            self.socket.listen(BACKLOG)
        except OSError as error:
            why = _explain(self.address, error)
            self.close()
            raise StartError(f"cannot listen on {self.address} ({self.key}): {why}") from None

    @property
    def sockaddr(self) -> SockAddress:
        """Where it is bound."""
        return self.socket.family, self.socket.getsockname()

    def share_port(self) -> None:
        """From now on other sockets of this run may have the same port. Linux lets a socket that
        listens have SO_REUSEPORT as well."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Close our copy, and remove the file of a unix socket if it is still the same."""
        # The socket may be closed already, by a server that it was passed to.
        self.socket.close()
        if self._file_id is not None:
            with suppress(OSError):
                if _read_file_id(self.address.path) == self._file_id:
                    Path(self.address.path).unlink()
            self._file_id = None
        if self._path_lock is not None:
            # Last, because the next owner of the lock may treat the file as stale.
            self._path_lock.close()
            self._path_lock = None

    def _bound_address(self, wanted: Address) -> Address:
        """The wanted address, with the port that the kernel chose instead of port 0."""
        if wanted.path:
            self._file_id = _read_file_id(wanted.path)
            return wanted
        return wanted._replace(port=self.socket.getsockname()[1])


class _PathLock:
    """The right to use the path of a unix socket: a lock on a file beside it.

    A run that is still starting and one that was killed look alike: in both cases a connect to
    the socket is refused. The lock tells them apart, because it ends with its process. A lock
    file that is left behind is harmless.
    """

    def __init__(self, path: str) -> None:
        """OSError with EADDRINUSE: another run has the lock."""
        self._path = f"{path}.lock"
        while True:
            # Accessible only for us, because who can open a file can lock it.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
            except BaseException:
                os.close(self._fd)
                raise
            if self._is_at_its_path():
                return
            # Its last owner removed the file between our two calls, so the lock has no effect.
            os.close(self._fd)

    def close(self) -> None:
        """Release the lock. The file is removed first, while no other process can lock it."""
        with suppress(OSError):
            if self._is_at_its_path():
                Path(self._path).unlink()
        os.close(self._fd)

    def _is_at_its_path(self) -> bool:
        opened = os.fstat(self._fd)
        try:
            return _read_file_id(self._path) == (opened.st_dev, opened.st_ino)
        except FileNotFoundError:
            return False


def sockaddr_of(address: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> SockAddress | None:
    """Where a listener of this address is bound. None: there is no such address."""
    wanted = parse_address(address)
    if wanted.path:
        return socket.AF_UNIX, wanted.path
    try:
        family, _, _, sockaddr = _resolve(wanted, kind)
    except OSError:
        return None
    return family, sockaddr


def _resolve(
    address: Address, kind: socket.SocketKind
) -> tuple[socket.AddressFamily, socket.SocketKind, int, tuple[Any, ...]]:
    resolved = socket.getaddrinfo(address.host, address.port, type=kind, flags=socket.AI_PASSIVE)
    # If a name has IPv4 and IPv6 addresses, use IPv4, as clients of a local name do.
    family, kind, protocol, _, sockaddr = min(resolved, key=lambda one: one[0] != socket.AF_INET)
    return family, kind, protocol, sockaddr


def _open_inet(address: Address, kind: socket.SocketKind, reuseport: bool) -> socket.socket:
    family, kind, protocol, sockaddr = _resolve(address, kind)
    sock = socket.socket(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            # Without it a restart would have to wait for connections in TIME_WAIT. Not for
            # datagrams, where it would let two runs have the same port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit it, so it costs nothing for each connection.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(sockaddr)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_unix(path: str, access: Access) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if access.mode is not None:
            # The file gets the socket's mode without the umask's bits: never more than wanted.
            os.fchmod(sock.fileno(), access.mode)
        sock.bind(path)
        if access != _DEFAULT_ACCESS:
            _set_access(path, access)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_access(path: str, access: Access) -> None:
    """Set mode and owner by a descriptor, because others who can write to the directory may
    replace the file."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        resolved = os.fstat(fd)
        ours = resolved.st_uid == os.geteuid() and resolved.st_nlink == 1
        if not (stat.S_ISSOCK(resolved.st_mode) and ours):
            raise OSError(errno.EEXIST, "somebody put another file in its place")
        if access.mode is not None:
            Path(f"/proc/self/fd/{fd}").chmod(access.mode)
        # Last, because changing the mode of another user's file takes one more capability.
        os.chown(f"/proc/self/fd/{fd}", access.uid, access.gid)
    finally:
        os.close(fd)


def _remove_stale(path: str) -> None:
    """Remove the socket of a run that was killed. One that answers is in use.

    Only with the lock: the socket of a run that does not listen yet does not answer either.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Non-blocking, because a connect to a full queue waits. EAGAIN also means "in use".
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _read_file_id(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _explain(address: Address, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if error.errno == errno.EADDRINUSE:
        return "address already in use" + ("" if address.path else _port_owner(address.port))
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.ENOENT and address.path:
        return "no such directory"
    if error.errno == errno.EACCES and not address.path:
        return _privileged_port_hint(address.port)
    return (error.strerror or str(error)).lower()


def _privileged_port_hint(port: int) -> str:
    first = _read_int(_UNPRIVILEGED, 1024)
    return (
        f"permission denied: ports below {first} need root, CAP_NET_BIND_SERVICE, "
        f"or sysctl net.ipv4.ip_unprivileged_port_start={port}"
    )


def _port_owner(port: int) -> str:
    """The process that has the port, if we can see it: only root sees those of other users."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and connection.pid and listens.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def _read_int(path: Path, default: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return default
