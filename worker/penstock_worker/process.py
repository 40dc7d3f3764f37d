"""What a program imports to talk to its supervisor, and to whoever embeds it.

    from penstock_worker import process

    process.send({"jobs": 3})               # any JSON value
    process.send("take it", handle=sock)    # a socket: listening, connected, UDP or unix
    process.on_message(lambda message, handle: ...)
    process.retire("cache is corrupt")      # replace me, I finish what I have
    await process.drain()                   # until `send` has room again

A process is one worker, so this is a module and not a class, as in Node (`process.send`,
`process.on("message")`). Owns the messages that came before the program set a callback. Under
`penstock_worker.serve` the channel is the runtime's, which attaches it here. In any other Python
program the first use within its event loop adopts the channel that the environment names.
A callback can be set before there is a loop, so it can be a decorator at the top of a module.

Without a supervisor nothing fails: `is_worker` is False and `send` returns False. Use it in the
loop's thread only. What was sent before a clean exit arrives. A child that the program forks has
no supervisor. Callbacks run as any callback of the loop does, so an exception in one is
an uncaught exception of the program.
"""

import asyncio
import atexit
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

from penstock_worker import contract
from penstock_worker.channel import framing
from penstock_worker.channel.channel import Channel
from penstock_worker.channel.channel import inherited as _inherited

__all__ = [
    "drain",
    "is_worker",
    "on_disconnect",
    "on_message",
    "ready",
    "retire",
    "send",
    "service",
    "slot",
]

MAX_QUEUED: Final = 1024
"""Messages that wait for the program to set a callback."""
MAX_QUEUED_HANDLES: Final = 64
"""Of those, messages with a descriptor, which is open meanwhile."""
_MAX_REASON: Final = 4096
FLUSH_S: Final = 2.0
"""How long an exit waits for the supervisor to take the last messages."""

OnMessage = Callable[[Any, socket.socket | None], object]
OnDisconnect = Callable[[], object]

_log: Final = logging.getLogger("penstock.worker")


class _State:
    """The state of this module."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.is_worker = _is_socket(environ.get(contract.CHANNEL_FD, ""))
        number = environ.get(contract.SLOT, "") if self.is_worker else ""
        self.slot = int(number) if number.isascii() and number.isdigit() else None
        self.service = environ.get(contract.SERVICE, "") if self.is_worker else ""
        self.environ = environ
        self.channel: Channel | None = None
        self.thread = 0
        """The thread that may use the channel."""
        self.is_disconnected = False
        self.on_message: OnMessage | None = None
        self.on_disconnect: OnDisconnect | None = None
        self.on_retire: Callable[[str], None] | None = None
        self.queued: deque[tuple[Any, socket.socket | None]] = deque()
        self.queued_handles = 0
        self.dropped = False

    def open_channel(self) -> Channel | None:
        """The channel, adopted from the environment if need be; None without one."""
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
            # A child process of a worker inherited the variable without the descriptor.
            _log.warning("there is no supervisor: %s", error)
            return
        assert sock is not None
        self.thread = threading.get_ident()
        self.channel = Channel(loop, sock, self.receive, self.disconnected)
        self.channel.send({"cmd": contract.ONLINE, "pid": os.getpid()})
        atexit.register(self.flush)

    def flush(self) -> None:
        """The process exits: what was sent must arrive."""
        if self.channel is not None and not self.channel.closed:
            flush(self.channel)

    def forget(self) -> None:
        """In a forked child: the channel is its parent's."""
        channel, self.channel = self.channel, None
        self.on_retire = None
        if channel is not None and channel.fileno() >= 0:
            # Not closed: its object would close the number again when it is collected.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, channel.fileno(), inheritable=False)
            os.close(null)

    def receive(self, message: Any, handle: socket.socket | None) -> None:
        """Handle a message in a program without our runtime."""
        command = message.get("cmd") if isinstance(message, dict) else None
        if not isinstance(command, str) or not command.startswith(contract.INTERNAL):
            self.deliver(message, handle)
            return
        _close(handle)
        assert self.channel is not None
        if command == contract.PING:
            self.channel.send({"cmd": contract.PONG, "seq": message.get("seq")})
        elif command == contract.STATS:
            # Such a program counts nothing; the supervisor asks the kernel for the rest.
            answer = {"cmd": contract.STATS, "seq": message.get("seq"), "metrics": {}}
            self.channel.send(answer)

    def deliver(self, message: Any, handle: socket.socket | None) -> None:
        if framing.is_internal(message):
            # An internal message that is not ours: Node does not show it to the program, either.
            _log.debug("a message that this worker does not know: %.80r", message)
            _close(handle)
            return
        self.queued.append((message, handle))
        self.queued_handles += handle is not None
        self.dispatch()
        while len(self.queued) > MAX_QUEUED or self.queued_handles > MAX_QUEUED_HANDLES:
            _, old = self.queued.popleft()
            self.queued_handles -= old is not None
            _close(old)
            if not self.dropped:
                self.dropped = True
                _log.warning("nobody listens to messages: the oldest are dropped")

    def dispatch(self) -> None:
        """Call the callback in the loop's next turn; without a loop no message has come yet."""
        if self.on_message is None or (loop := _running()) is None:
            return
        while self.queued:
            loop.call_soon(self.on_message, *self.queued.popleft())
        self.queued_handles = 0

    def listen(self, callback: OnMessage) -> None:
        self.on_message = callback
        self.adopt_if_possible()
        self.dispatch()

    def adopt_if_possible(self) -> None:
        if _running() is not None:
            self.open_channel()

    def disconnected(self) -> None:
        self.is_disconnected = True
        if self.on_disconnect is not None:
            # Not at once: it follows the last message, and an exception in it must not keep the
            # runtime from stopping.
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


def _check_plain(callback: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(callback):
        # It would never run, without any error.
        raise TypeError("the callback must be a plain function, which may start a task")


_state = _State(os.environ)  # noqa: TID251 -- one process is one worker
os.register_at_fork(after_in_child=_state.forget)

slot: int | None = _state.slot
"""0, 1, 2 …: a successor of this process gets the same; None without a supervisor."""
service: str = _state.service
"""The name of the service, or empty."""
is_worker: bool = _state.is_worker
"""Was this process started by a supervisor?"""


def send(message: Any, handle: socket.socket | None = None) -> bool:
    """Send a message to the program that embeds the supervisor; False without a supervisor.

    The handle is copied, and the caller closes its own. ValueError: not JSON, longer than a line
    may be (1 MiB), or a `cmd` that starts with NODE_. TypeError: a handle that cannot
    be sent. OSError: too much waits already (ENOBUFS), see `drain`, or no descriptor is left.
    RuntimeError: the first use without a running event loop, or another thread.
    """
    if framing.is_internal(message):
        raise ValueError(f"a cmd that starts with {framing.RESERVED} is not for programs")
    channel = _state.open_channel()
    if channel is None or channel.closed:
        return False
    return channel.send_for_program(message, handle)


async def drain() -> None:
    """Wait until `send` has room for one more message. At once without a supervisor."""
    channel = _state.open_channel()
    if channel is not None:
        # Several may wait for the same future, and one of them may be cancelled.
        await asyncio.shield(channel.room())


def on_message(callback: OnMessage) -> OnMessage:
    """Have `callback(message, handle)` called for each message; also as a decorator.

    The handle is a non-blocking socket, or None; the callback closes it. There is one callback,
    the last that was set. Messages that came before it was set are passed to it then.
    TypeError: a coroutine function.
    """
    _check_plain(callback)
    _state.listen(callback)
    return callback


def on_disconnect(callback: OnDisconnect) -> OnDisconnect:
    """Have `callback()` called when the supervisor is gone; also as a decorator."""
    _check_plain(callback)
    _state.on_disconnect = callback
    _state.adopt_if_possible()
    if _state.is_disconnected and _running() is not None:
        _state.disconnected()
    return callback


def ready() -> None:
    """Report that clients are served. For a `command`; an `app` is ready when it listens."""
    if _state.on_retire is None:
        _send_internal({"cmd": contract.READY})


def retire(reason: str = "") -> None:
    """Ask to be replaced: a successor starts at once, and no new client comes to this worker.

    It goes on serving until SIGTERM comes, and has `timeouts.stop` from then on.
    """
    reason = reason[:_MAX_REASON]
    if _state.on_retire is not None:
        _state.on_retire(reason)
    else:
        _send_internal({"cmd": contract.RETIRE, "reason": reason, "traceback": ""})


def _send_internal(message: dict[str, Any]) -> None:
    channel = _state.open_channel()
    if channel is not None:
        channel.send(message)


# For the runtime.


def flush(channel: Channel) -> None:
    """Send what waits, before the process exits."""
    if not channel.flush(FLUSH_S):
        _log.warning("the last messages to the supervisor are lost: it did not take them in time")


def attach(channel: Channel | None, on_retire: Callable[[str], None]) -> None:
    """Use the runtime's channel and its `on_retire`. Call it in the loop's thread."""
    _state.channel, _state.thread = channel, threading.get_ident()
    _state.on_retire = on_retire


def deliver(message: Any, handle: socket.socket | None) -> None:
    """Pass a message to the program, which owns the handle."""
    _state.deliver(message, handle)


def disconnected() -> None:
    """The supervisor is gone."""
    _state.disconnected()
