"""Makes a process independent of the state that it inherits: descriptors 0 to 2, and signals.

Owns the first lines of every program of ours. exec keeps closed descriptors closed, blocked
signals blocked and ignored signals ignored. So a run that was started with a closed stdin would
get a socket or an epoll as descriptor 0, one with a blocked SIGTERM would never hear it, and one
with an ignored SIGCHLD could not read the status of a child.

A signal that is sent to all processes of a run by mistake must harm nobody, and the default of
most signals is to kill. So these get a handler that does nothing. It is not SIG_IGN, because the
programs that a worker executes would inherit that.

It must be imported before anything else, so it imports nothing that takes time.
"""

import os
import signal
import sys
from collections.abc import Collection
from io import TextIOWrapper
from types import FrameType
from typing import Final, TextIO

HARMLESS: Final = frozenset(
    {
        signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
        signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP,
    }
)  # fmt: skip
"""Signals that would kill or stop a process, and that none of our proxies and workers needs."""
PYTHONS_OWN: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Python ignores these at its start, so that a write returns an error instead."""


def prepare_child() -> None:
    """For a proxy or a worker, before its imports."""
    open_standard_descriptors()
    disregard(HARMLESS, even_ignored=True)
    reset_signals()


def open_standard_descriptors() -> None:
    """Open the null device as each of the descriptors 0, 1 and 2 that is closed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has None in place of a stream whose descriptor was closed at its start.
    if sys.stdin is None:
        sys.stdin = _reopened(0, "r")
    if sys.stdout is None:
        sys.stdout = _reopened(1, "w")
    if sys.stderr is None:
        sys.stderr = _reopened(2, "w")


def disregard(numbers: Collection[signal.Signals], *, even_ignored: bool = False) -> None:
    """Let these signals do nothing. Those that are ignored already stay so, or not."""
    for number in numbers:
        if even_ignored or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _do_nothing)


def reset_signals(*, keep_ignored: Collection[signal.Signals] = ()) -> None:
    """Give ignored signals their default action, and unblock all signals."""
    for number in signal.valid_signals():
        if number in PYTHONS_OWN or number in keep_ignored:
            continue
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _do_nothing(_: int, __: FrameType | None) -> None:
    return


def _reopened(fd: int, mode: str) -> TextIO:
    file = open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    assert isinstance(file, TextIOWrapper)
    return file
