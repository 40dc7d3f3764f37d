"""What exec needs of a program, and how the program gets its listening sockets.

Owns the descriptor numbers of passed sockets: 3, 4 and so on, by the protocol of systemd
(sd_listen_fds(3)), whatever numbers they have in the supervisor. It does not know what a socket
is for, or how a process is started.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from signal import Signals
from typing import Final, Literal, NamedTuple

from penstock_supervisor.process.privileges import UNCHANGED, Privileges
from penstock_worker.contract import LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, LISTEN_START

MIN_HIGH_FD: Final = 64
"""The lowest descriptor number that is never one of the passed sockets."""


class ExecSpec(NamedTuple):
    """The arguments of an exec."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str | None = None
    inherited: tuple[int, ...] = ()
    """Descriptors that keep their numbers in the child."""
    captured: bool = True
    """Its stdout is a pipe to us. Its stderr always is."""
    listen: tuple[int, ...] = ()
    """Listening sockets that it gets as descriptors 3, 4 …, by the protocol of systemd
    (sd_listen_fds(3)). Other inherited descriptors must not have these numbers: see `dup_high`."""
    fd_name: str = ""
    """The name of each of them in LISTEN_FDNAMES."""
    privileges: Privileges = UNCHANGED
    """Its user and capabilities."""
    blocked_signals: frozenset[Signals] = frozenset()
    """Signals that are blocked when it starts."""
    name: str = ""
    """Its name in messages."""
    stop_signal: Signals = Signals.SIGTERM
    """What asks it to end."""
    stop_to: Literal["leader", "group"] = "group"
    """Who gets that: the process itself, or what it started as well."""
    stop_s: float = 0.0
    """After its own end, how long may go on what it started."""


@contextmanager
def reserve_numbers(sockets: Sequence[int]) -> Iterator[None]:
    """Inside, the numbers that the sockets will get are in use, so that Popen's own pipe does
    not get one of them."""
    reserved: list[int] = []
    try:
        while sockets and (not reserved or reserved[-1] < LISTEN_START + len(sockets)):
            reserved.append(fcntl.fcntl(sockets[0], fcntl.F_DUPFD_CLOEXEC, LISTEN_START))
        yield
    finally:
        for fd in reserved:
            os.close(fd)


def exec_with_sockets(spec: ExecSpec) -> None:
    """In the child: move the listening sockets to their numbers, and exec the program.

    Popen would exec with an environment that was made before the fork, but LISTEN_PID is known
    only now. So we exec here. If that fails, Popen's exec fails in the same way, and reports it.
    """
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, MIN_HIGH_FD) for fd in spec.listen]
    for number, fd in enumerate(copies, LISTEN_START):
        os.dup2(fd, number, inheritable=True)
    inheritable = {*range(3), *range(LISTEN_START, LISTEN_START + len(copies)), *spec.inherited}
    # Popen would close the others: the originals, and descriptors that we inherited ourselves.
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 — numbers, not paths
        with suppress(OSError):
            if int(name) not in inheritable:
                os.set_inheritable(int(name), False)
    environment = {
        **spec.environment,
        LISTEN_FDS: str(len(copies)),
        LISTEN_FDNAMES: ":".join([spec.fd_name] * len(copies)),
        LISTEN_PID: str(os.getpid()),
    }
    with suppress(OSError, ValueError):
        os.execvpe(spec.argv[0], list(spec.argv), environment)


def dup_high(fd: int) -> int:
    """Copy a descriptor to a number that no passed socket gets; the caller closes it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, MIN_HIGH_FD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The kernel reports a number beyond the limit as EINVAL.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
