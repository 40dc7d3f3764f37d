"""What a program imports to talk to its supervisor, and to whoever embeds it.

    from penstock_worker import process

    process.send({"jobs": 3})               # any JSON value
    process.send("take it", handle=sock)    # a socket: listening, connected, UDP or unix
    process.on_message(lambda message, handle: ...)
    process.retire("cache is corrupt")      # replace me, I finish what I have

The process is the worker, so this is a module and not an object: there is one of each in a
process, as in Node (`process.send`, `process.on("message")`). Owns what was said before
anybody listened. Under `penstock_worker.serve` the channel is the runtime's, which attaches
itself here; in any other Python program the first use within its event loop adopts the
channel that the environment names. Only setting a callback needs no loop, so that it can
decorate a function at the top of a module.

Without a supervisor everything is harmless: `is_worker` is False and `send` returns False.
All of it belongs to the loop's thread. Callbacks run as any callback of the loop does, so an
exception in one is the program's own that nobody caught.
"""

import asyncio
import errno
import inspect
import logging
import os
import socket
import stat
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from penstock_worker import contract, wire
from penstock_worker.channel import Channel
from penstock_worker.channel import inherited as _inherited

__all__ = [
    "is_worker",
    "on_disconnect",
    "on_message",
    "ready",
    "retire",
    "send",
    "service",
    "slot",
]

MOST_KEPT: Final = 1024
"""Messages that wait for somebody to listen."""
MOST_KEPT_HANDLES: Final = 64
"""Of those, with a descriptor, which is open meanwhile."""
_MOST_REASON: Final = 4096

OnMessage = Callable[[Any, socket.socket | None], object]
OnDisconnect = Callable[[], object]

_log: Final = logging.getLogger("penstock.worker")


class _State:
    """Everything that this module knows."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.is_worker = _is_socket(environ.get(contract.CHANNEL_FD, ""))
        number = environ.get(contract.SLOT, "") if self.is_worker else ""
        self.slot = int(number) if number.isascii() and number.isdigit() else None
        self.service = environ.get(contract.SERVICE, "") if self.is_worker else ""
        self.environ = environ
        self.channel: Channel | None = None
        self.thread = 0
        """Whose channel it is."""
        self.gone = False
        self.on_message: OnMessage | None = None
        self.on_disconnect: OnDisconnect | None = None
        self.on_retire: Callable[[str], None] | None = None
        self.kept: deque[tuple[Any, socket.socket | None]] = deque()
        self.kept_handles = 0
        self.dropped = False

    def upward(self) -> Channel | None:
        """The channel, adopted from the environment if nobody has; None without one."""
        if self.channel is None and contract.CHANNEL_FD in self.environ:
            if (loop := _running()) is None:
                raise RuntimeError("call this from within the event loop")
            self._adopt(loop)
        if self.channel is not None and threading.get_ident() != self.thread:
            raise RuntimeError("call this from the loop's thread: loop.call_soon_threadsafe(…)")
        return self.channel

    def _adopt(self, loop: AbstractEventLoop) -> None:
        try:
            sock = _inherited(self.environ)
        except ValueError as error:
            # A child of a worker has inherited the name without the descriptor.
            _log.warning("there is no supervisor: %s", error)
            return
        assert sock is not None
        self.thread = threading.get_ident()
        self.channel = Channel(loop, sock, self.heard, self.lost)
        self.channel.send({"cmd": contract.ONLINE, "pid": os.getpid()})

    def heard(self, message: Any, handle: socket.socket | None) -> None:
        """A message, in a program that has no runtime of ours."""
        command = message.get("cmd") if isinstance(message, dict) else None
        if not isinstance(command, str) or not command.startswith(contract.INTERNAL):
            self.deliver(message, handle)
            return
        _close(handle)
        assert self.channel is not None
        if command == contract.PING:
            self.channel.send({"cmd": contract.PONG, "seq": message.get("seq")})
        elif command == contract.STATS:
            # It has no figures of its own; what the kernel knows of it is asked elsewhere.
            answer = {"cmd": contract.STATS, "seq": message.get("seq"), "metrics": {}}
            self.channel.send(answer)

    def deliver(self, message: Any, handle: socket.socket | None) -> None:
        if wire.is_internal(message):
            # Neither ours nor the program's: Node shows it to nobody, either.
            _log.debug("a message that this worker does not know: %.80r", message)
            _close(handle)
            return
        self.kept.append((message, handle))
        self.kept_handles += handle is not None
        self.hand_on()
        while len(self.kept) > MOST_KEPT or self.kept_handles > MOST_KEPT_HANDLES:
            _, old = self.kept.popleft()
            self.kept_handles -= old is not None
            _close(old)
            if not self.dropped:
                self.dropped = True
                _log.warning("nobody listens to messages: the oldest are dropped")

    def hand_on(self) -> None:
        """Tell whoever listens, in the loop's next turn; without a loop nothing came yet."""
        if self.on_message is None or (loop := _running()) is None:
            return
        while self.kept:
            loop.call_soon(self.on_message, *self.kept.popleft())
        self.kept_handles = 0

    def listen(self, callback: OnMessage) -> None:
        self.on_message = callback
        self.adopt_if_it_can_be()
        self.hand_on()

    def adopt_if_it_can_be(self) -> None:
        if _running() is not None:
            self.upward()

    def lost(self) -> None:
        self.gone = True
        if self.on_disconnect is not None:
            # Behind the last message; and an exception in it must not keep the runtime from
            # leaving.
            asyncio.get_running_loop().call_soon(self.on_disconnect)


def _running() -> AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _is_socket(number: str) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(int(number)).st_mode)
    except (ValueError, OverflowError, OSError):
        return False


def _close(handle: socket.socket | None) -> None:
    if handle is not None:
        handle.close()


def _plain(callback: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(callback):
        # It would never run, and nobody would be told.
        raise TypeError("the callback must be a plain function, which may start a task")


_state = _State(os.environ)  # noqa: TID251 -- one process is one worker

slot: int | None = _state.slot
"""0, 1, 2 …, kept by every process that takes this place; None if nobody supervises."""
service: str = _state.service
"""The name of the service, or empty."""
is_worker: bool = _state.is_worker
"""Was this process started by a supervisor?"""


def send(message: Any, handle: socket.socket | None = None) -> bool:
    """Say something to the supervisor's embedder; False if nobody is there to hear it.

    The handle is copied; yours is yours to close. ValueError: not JSON, longer than a line
    may be (1 MiB), or a `cmd` that starts with NODE_. TypeError: a handle that cannot
    travel. OSError: too much waits already (ENOBUFS), or no descriptor is left for the copy.
    RuntimeError: the first use without a running event loop, or another thread.
    """
    if wire.is_internal(message):
        raise ValueError(f"a cmd that starts with {wire.RESERVED} is not for programs")
    channel = _state.upward()
    if channel is None or channel.closed:
        return False
    if channel.congested:
        # The channel takes more than that for a peer that has stopped reading. Whoever sends
        # a thousand messages at one go has not let the loop read an answer.
        raise OSError(errno.ENOBUFS, "too many messages wait to be sent")
    return channel.send(message, handle)


def on_message(callback: OnMessage) -> OnMessage:
    """Have `callback(message, handle)` called for each message; also as a decorator.

    The handle is a socket that does not block, or None, and is the callback's to close.
    There is one callback, the last that was set; what came before it is told then.
    TypeError: a coroutine function.
    """
    _plain(callback)
    _state.listen(callback)
    return callback


def on_disconnect(callback: OnDisconnect) -> OnDisconnect:
    """Have `callback()` called when the supervisor is gone; also as a decorator."""
    _plain(callback)
    _state.on_disconnect = callback
    _state.adopt_if_it_can_be()
    if _state.gone and _running() is not None:
        _state.lost()
    return callback


def ready() -> None:
    """Say that clients are served. For a `command`; an `app` is ready when it listens."""
    if _state.on_retire is None:
        _say({"cmd": contract.READY})


def retire(reason: str = "") -> None:
    """Ask to be replaced: nobody picks this worker any more, a successor starts at once.

    It goes on serving what it has until SIGTERM comes, and has `timeouts.stop` from then on.
    """
    reason = reason[:_MOST_REASON]
    if _state.on_retire is not None:
        _state.on_retire(reason)
    else:
        _say({"cmd": contract.RETIRE, "reason": reason, "traceback": ""})


def _say(message: dict[str, Any]) -> None:
    channel = _state.upward()
    if channel is not None:
        channel.send(message)


# For the runtime.


def attach(channel: Channel | None, on_retire: Callable[[str], None]) -> None:
    """The runtime has the channel, and retires in its own way; in the loop's thread."""
    _state.channel, _state.thread = channel, threading.get_ident()
    _state.on_retire = on_retire


def deliver(message: Any, handle: socket.socket | None) -> None:
    """A message for the program; whoever listens owns the handle."""
    _state.deliver(message, handle)


def disconnected() -> None:
    """The supervisor is gone."""
    _state.lost()
