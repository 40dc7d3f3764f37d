"""What a child that the program forks must not have of its worker.

A fork (multiprocessing, `os.fork`) copies the whole process: the handlers of signals, whose
wake-up descriptor belongs to the parent's event loop, and every descriptor. A SIGTERM for the
child would then stop the worker. A listening socket, a link or a client's connection would stay
open for as long as the child lives, although the worker has closed it.

Owns what is done about it in the child, and in the moment between. Signals are blocked from
before the fork until the child is clean, since `Process.terminate` often follows at once.

Descriptors are not closed but replaced by /dev/null. The objects that own them are in the child as
well; when they are collected there, they close the number, which must not be another file by then.
Nothing is shut down, and nothing is taken from the parent's epoll: both are shared with the parent.
The child's copy of the loop gets an epoll of its own, in which nothing happens; a child that comes
back to that loop, instead of leaving by `os._exit`, would be a second worker, and is ended.

A program that is executed (`subprocess`, spawn, forkserver) needs none of this: our descriptors
are close-on-exec, and an exec resets handlers.
"""

import asyncio
import os
import select
import signal
import stat
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

_ALL_SIGNALS: Final = signal.valid_signals()
_LEAVE_S: Final = 0.05
"""For SystemExit to find its way out of the loop, which takes some turns."""


class ForkedChildren:
    """`descriptors()` are those that a child must not have; `on_child` is called in each child."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        descriptors: Callable[[], Iterable[int]],
        on_child: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._on_child = on_child
        self._masks: dict[int, set[Any]] = {}
        """The signals that were blocked before the fork, by thread: several may fork at a time."""
        self._active = True
        os.register_at_fork(
            before=self._before,
            after_in_parent=self._after_in_parent,
            after_in_child=self._after_in_child,
        )

    def close(self) -> None:
        """The worker is over. Python cannot forget functions that it calls at a fork."""
        self._active = False

    def _before(self) -> None:
        if self._active:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
            self._masks[threading.get_ident()] = mask

    def _after_in_parent(self) -> None:
        self._restore_mask()

    def _after_in_child(self) -> None:
        if not self._active:
            return
        # Its own children have nothing of the worker's any more.
        self._active = False
        try:
            reset_signals(self._loop)
            self._on_child()
            replace(self._descriptors())
            replace_epoll(self._loop)
            self._loop.call_later(_LEAVE_S, _leave)
        finally:
            self._restore_mask()

    def _restore_mask(self) -> None:
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave() -> None:
    os.write(2, b"a forked child came back to the worker's event loop: it has to end by os._exit\n")
    os._exit(1)


def reset_signals(loop: AbstractEventLoop) -> None:
    """Back to Python's own handlers for every signal that the loop handles. Handlers that the
    program has set without the loop stay, as after any fork."""
    signal.set_wakeup_fd(-1)
    for number in _ALL_SIGNALS:
        handler: Any = signal.getsignal(number)
        owner = getattr(getattr(handler, "func", handler), "__self__", None)
        if owner is loop or isinstance(owner, asyncio.Runner):
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def replace(descriptors: Iterable[int]) -> None:
    """Put /dev/null in the place of each that is a socket."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for fd in descriptors:
            with suppress(OSError):
                if fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)


def replace_epoll(loop: AbstractEventLoop) -> None:
    """Put an empty one in its place: what the child took from it, the parent would miss."""
    ask = getattr(loop, "_get_backend_id", None)
    if ask is not None:
        with suppress(OSError), select.epoll() as empty:
            os.dup2(empty.fileno(), ask(), inheritable=False)
