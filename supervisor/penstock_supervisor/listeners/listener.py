"""Opens the listening sockets and keeps them.

The supervisor holds every listener for as long as it runs, and proxies inherit them: one can
die and the next one goes on with the same queue of connections, so none is refused. What
the sockets are for is not known here.

Whatever cannot be opened is a StartError of one line: address, key, reason, and who has it.
"""

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.errors import StartError

BACKLOG: Final = 4096
"""What waits while a proxy is being replaced; the kernel cuts it to net.core.somaxconn."""
_UNPRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Access(NamedTuple):
    """Who may connect to a unix socket; a number of -1 leaves it with us."""

    mode: int | None = None
    """None: as the umask says."""
    uid: int = -1
    gid: int = -1


_AS_USUAL: Final = Access()


class Listener:
    """One listening socket; `key` is what the configuration calls it."""

    def __init__(
        self,
        address: str,
        key: str,
        *,
        bind_only: bool = False,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        reuseport: bool = False,
        access: Access = _AS_USUAL,
    ) -> None:
        """`bind_only`: take the address now, but let nobody connect before `listen`.

        `kind` SOCK_DGRAM makes a socket for datagrams, which has nothing to listen to.
        `reuseport`: others of this run will have the same port (SO_REUSEPORT).
        """
        self.key = key
        wanted = parse_address(address)
        self._kind = kind
        self._file: tuple[int, int] | None = None
        self._path_lock: _PathLock | None = None
        try:
            if wanted.path:
                self._path_lock = _PathLock(wanted.path)
            self.socket = (
                _unix(wanted.path, access) if wanted.path else _inet(wanted, kind, reuseport)
            )
        except OSError as error:
            if self._path_lock is not None:
                self._path_lock.close()
            raise StartError(f"cannot listen on {address} ({key}): {_why(wanted, error)}") from None
        self.address = self._actual(wanted)
        if not bind_only:
            self.listen()

    def listen(self) -> None:
        """From now on clients can connect. StartError: somebody else was faster."""
        if self._kind == socket.SOCK_DGRAM:
            return
        try:
            self.socket.listen(BACKLOG)
        except OSError as error:
            why = _why(self.address, error)
            self.close()
            raise StartError(f"cannot listen on {self.address} ({self.key}): {why}") from None

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Close our copy; a unix socket's name goes, if it still is ours."""
        # A server that was given the socket may have closed it; the name is still ours.
        self.socket.close()
        if self._file is not None:
            with suppress(OSError):
                if _identity(self.address.path) == self._file:
                    Path(self.address.path).unlink()
            self._file = None
        if self._path_lock is not None:
            # Last: whoever gets it next may take the name for a dead run's.
            self._path_lock.close()
            self._path_lock = None

    def _actual(self, wanted: Address) -> Address:
        """As asked for, with the port that the kernel chose for port 0."""
        if wanted.path:
            self._file = _identity(wanted.path)
            return wanted
        return wanted._replace(port=self.socket.getsockname()[1])


class _PathLock:
    """The right to a unix socket's name: a lock on a file beside it.

    The name alone does not tell a run that is still starting from one that was killed: a
    socket refuses to be connected to before `listen` as it does when nobody has it. The lock
    goes with the process that has it, however that ends; a file left behind is harmless.
    """

    def __init__(self, path: str) -> None:
        """OSError with EADDRINUSE: another run has it."""
        self._path = f"{path}.lock"
        while True:
            # For us alone: who can open a file can lock it.
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
            # Its last owner removed it between our two calls: the lock would be on nothing.
            os.close(self._fd)

    def close(self) -> None:
        """Give it up; the file goes first, while nobody else can have locked it."""
        with suppress(OSError):
            if self._is_at_its_path():
                Path(self._path).unlink()
        os.close(self._fd)

    def _is_at_its_path(self) -> bool:
        opened = os.fstat(self._fd)
        try:
            return _identity(self._path) == (opened.st_dev, opened.st_ino)
        except FileNotFoundError:
            return False


def _inet(address: Address, kind: socket.SocketKind, reuseport: bool) -> socket.socket:
    found = socket.getaddrinfo(address.host, address.port, type=kind, flags=socket.AI_PASSIVE)
    # A name with both is served on IPv4, where the clients of a local name are.
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            # Without it a restart would wait for the last run's connections in TIME_WAIT.
            # For datagrams it would let two runs have one port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Whatever is accepted from it inherits this, at no cost for each connection.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _unix(path: str, access: Access) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if access.mode is not None:
            # The file has the socket's mode, but for the umask: never more than is wanted.
            os.fchmod(sock.fileno(), access.mode)
        sock.bind(path)
        if access != _AS_USUAL:
            _open_to(path, access)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_to(path: str, access: Access) -> None:
    """By a descriptor: whoever can write to the directory must not have us open another file."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        ours = found.st_uid == os.geteuid() and found.st_nlink == 1
        if not (stat.S_ISSOCK(found.st_mode) and ours):
            raise OSError(errno.EEXIST, "somebody put another file in its place")
        if access.mode is not None:
            Path(f"/proc/self/fd/{fd}").chmod(access.mode)
        # Last: of what is another's we could not change the mode without one more capability.
        os.chown(f"/proc/self/fd/{fd}", access.uid, access.gid)
    finally:
        os.close(fd)


def _remove_stale(path: str) -> None:
    """Remove the socket of a run that was killed; one that answers is somebody's.

    For the owner of the claim only: a run that has not come to `listen` does not answer.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not blocking: a socket with a full queue would make a connect wait, and EAGAIN
        # is an answer too.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _why(address: Address, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if error.errno == errno.EADDRINUSE:
        return "address already in use" + ("" if address.path else _by_whom(address.port))
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.ENOENT and address.path:
        return "no such directory"
    if error.errno == errno.EACCES and not address.path:
        return _what_is_needed(address.port)
    return (error.strerror or str(error)).lower()


def _what_is_needed(port: int) -> str:
    first = _number(_UNPRIVILEGED, 1024)
    return (
        f"permission denied: ports below {first} need root, CAP_NET_BIND_SERVICE, "
        f"or sysctl net.ipv4.ip_unprivileged_port_start={port}"
    )


def _by_whom(port: int) -> str:
    """Best effort: other people's processes are only shown to root."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and connection.pid and listens.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def _number(path: Path, default: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return default
