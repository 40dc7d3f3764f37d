"""Signals of a process between fork and exec, and what exec keeps of them.

exec keeps the blocked signals and the ignored ones. A program expects neither: with SIGTERM
blocked it could not be stopped. So a child gets the default action of every signal.

From fork to exec the child is still our program, with our handlers. One of them would write into
the pipe that wakes our event loop, and we would act on a signal that was sent to the child. So all
signals are blocked before the fork. What arrives meanwhile waits.

Programs of ours start with the signals blocked that mean nothing to them, and unblock them as
soon as they have handlers (`penstock_worker.inherited_state`). So such a signal does not kill
them while they start.
"""

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from penstock_worker.inherited_state import HARMLESS

__all__ = ["HARMLESS", "all_blocked", "reset"]

_CHANGEABLE: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@contextmanager
def all_blocked() -> Iterator[None]:
    """Inside, this thread gets no signal: for a fork."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reset(
    *, ignored: Collection[signal.Signals] = (), blocked: Collection[signal.Signals] = ()
) -> None:
    """In the child, before exec: default actions and no blocked signals, but for these."""
    signal.set_wakeup_fd(-1)
    for number in _CHANGEABLE:
        # Without asking for the present action: Popen has changed some behind Python's back.
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
