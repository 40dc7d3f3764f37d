"""What exec needs to know of a program, and how it finds the listening sockets it is given.

Owns the places of passed sockets: from descriptor 3 on, by the protocol of systemd
(sd_listen_fds(3)), whatever numbers they have here. It does not know what a socket is for,
nor how a process is made.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from penstock_supervisor.process.privileges import AS_WE_ARE, Privileges
from penstock_worker.contract import LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, LISTEN_START

_HIGH: Final = 64
"""The first number that is surely none of the passed sockets'."""


class ExecSpec(NamedTuple):
    """All that exec needs."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str | None = None
    inherited: tuple[int, ...] = ()
    """Descriptors that keep their numbers in the child."""
    captured: bool = True
    """Its stdout comes to us through a pipe, as its stderr always does."""
    listen: tuple[int, ...] = ()
    """Listening sockets that it gets as descriptors 3, 4 …, by the protocol of systemd
    (sd_listen_fds(3)). No other inherited descriptor may have such a number: see `dup_high`."""
    names: str = ""
    """What each of them is called in LISTEN_FDNAMES."""
    privileges: Privileges = AS_WE_ARE
    """As whom it runs."""


@contextmanager
def reserve_numbers(sockets: Sequence[int]) -> Iterator[None]:
    """Popen's own pipe must not have a number that one of the sockets is about to get."""
    taken: list[int] = []
    try:
        while sockets and (not taken or taken[-1] < LISTEN_START + len(sockets)):
            taken.append(fcntl.fcntl(sockets[0], fcntl.F_DUPFD_CLOEXEC, LISTEN_START))
        yield
    finally:
        for fd in taken:
            os.close(fd)


def exec_with_sockets(program: ExecSpec) -> None:
    """In the child: put the listening sockets where they are expected, and become the program.

    LISTEN_PID is only known here, and the environment of the exec that follows is made
    already; so this one is done by ourselves. If it fails, that one fails in the same way
    and has the means to say why.
    """
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in program.listen]
    for place, fd in enumerate(copies, LISTEN_START):
        os.dup2(fd, place, inheritable=True)
    kept = {*range(3), *range(LISTEN_START, LISTEN_START + len(copies)), *program.inherited}
    # What Popen would close: the originals, and what our own parent left open for us.
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 — numbers, not paths
        with suppress(OSError):
            if int(name) not in kept:
                os.set_inheritable(int(name), False)
    environment = {
        **program.environment,
        LISTEN_FDS: str(len(copies)),
        LISTEN_FDNAMES: ":".join([program.names] * len(copies)),
        LISTEN_PID: str(os.getpid()),
    }
    with suppress(OSError, ValueError):
        os.execvpe(program.argv[0], list(program.argv), environment)


def dup_high(fd: int) -> int:
    """Copy a descriptor to a number that no passed socket wants; the caller closes it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The kernel's word for a number that is beyond the limit.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
