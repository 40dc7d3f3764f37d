"""What a program imports to talk to its supervisor, and to whoever embeds it.

    from penstock_worker import process

    process.send({"jobs": 3})               # any JSON value
    process.send("take it", handle=sock)    # a socket: listening, connected, UDP or unix
    process.on_message(lambda message, handle: ...)
    process.retire("cache is corrupt")      # replace me, I finish what I have

The process is the worker, so this is a module and not an object: there is one of each in a
process, as in Node (`process.send`, `process.on("message")`). Owns what was said before
anybody listened. Under `penstock_worker.serve` the channel is the runtime's, which attaches
itself here; in any other Python program the first use adopts the channel that the environment
names, and needs a running event loop for it.

Without a supervisor everything is harmless: `is_worker` is False and `send` returns False.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from penstock_worker import contract
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

OnMessage = Callable[[Any, socket.socket | None], object]
OnDisconnect = Callable[[], object]

_log: Final = logging.getLogger(__name__)


class _State:
    """Everything that this module knows."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        number = environ.get(contract.SLOT, "")
        self.slot = int(number) if number.isascii() and number.isdigit() else None
        self.service = environ.get(contract.SERVICE, "")
        self.environ = environ
        self.channel: Channel | None = None
        self.gone = False
        self.on_message: OnMessage | None = None
        self.on_disconnect: OnDisconnect | None = None
        self.on_retire: Callable[[str], None] | None = None
        self.kept: deque[tuple[Any, socket.socket | None]] = deque()
        self.dropped = False

    def upward(self) -> Channel | None:
        """The channel, adopted from the environment if nobody has; None without one."""
        if self.channel is None and contract.CHANNEL_FD in self.environ:
            loop = asyncio.get_running_loop()
            sock = _inherited(self.environ)
            assert sock is not None
            self.channel = Channel(loop, sock, self.heard, self.lost)
            self.channel.send({"cmd": contract.ONLINE, "pid": os.getpid()})
        return self.channel

    def heard(self, message: Any, handle: socket.socket | None) -> None:
        """A message, in a program that has no runtime of ours."""
        command = message.get("cmd") if isinstance(message, dict) else None
        if not isinstance(command, str) or not command.startswith(contract.INTERNAL):
            self.deliver(message, handle)
            return
        if handle is not None:
            handle.close()
        assert self.channel is not None
        if command == contract.PING:
            self.channel.send({"cmd": contract.PONG, "seq": message.get("seq")})
        elif command == contract.STATS:
            # It has no figures of its own; what the kernel knows of it is asked elsewhere.
            answer = {"cmd": contract.STATS, "seq": message.get("seq"), "metrics": {}}
            self.channel.send(answer)

    def deliver(self, message: Any, handle: socket.socket | None) -> None:
        if self.on_message is not None:
            self.on_message(message, handle)
            return
        self.kept.append((message, handle))
        if len(self.kept) > MOST_KEPT:
            _, old = self.kept.popleft()
            if old is not None:
                old.close()
            if not self.dropped:
                self.dropped = True
                _log.warning("nobody listens to messages: the oldest are dropped")

    def listen(self, callback: OnMessage) -> None:
        self.on_message = callback
        while self.kept and self.on_message is callback:
            callback(*self.kept.popleft())

    def lost(self) -> None:
        self.gone = True
        if self.on_disconnect is not None:
            self.on_disconnect()


_state = _State(os.environ)  # noqa: TID251 -- one process is one worker

slot: int | None = _state.slot
"""0, 1, 2 …, kept by every process that takes this place; None if nobody supervises."""
service: str = _state.service
"""The name of the service, or empty."""
is_worker: bool = slot is not None
"""Was this process started by a supervisor?"""


def send(message: Any, handle: socket.socket | None = None) -> bool:
    """Say something to the supervisor's embedder; False if nobody is there to hear it.

    The handle is copied; yours is yours to close. ValueError: not JSON, or longer than a
    line may be (1 MiB). TypeError: a handle that is no socket. RuntimeError: the first use,
    and no event loop runs.
    """
    channel = _state.upward()
    return channel is not None and channel.send(message, handle)


def on_message(callback: OnMessage) -> OnMessage:
    """Have `callback(message, handle)` called for each message; also as a decorator.

    The handle is a socket that does not block, or None, and is the callback's to close.
    What came before is told at once.
    """
    _state.upward()
    _state.listen(callback)
    return callback


def on_disconnect(callback: OnDisconnect) -> OnDisconnect:
    """Have `callback()` called when the supervisor is gone; also as a decorator."""
    _state.upward()
    _state.on_disconnect = callback
    if _state.gone:
        callback()
    return callback


def ready() -> None:
    """Say that clients are served. For a `command`; an `app` is ready when it listens."""
    if _state.on_retire is None:
        send({"cmd": contract.READY})


def retire(reason: str = "") -> None:
    """Ask to be replaced: nobody picks this worker any more, a successor starts at once.

    It goes on serving what it has until SIGTERM comes, and has `timeouts.stop` from then on.
    """
    if _state.on_retire is not None:
        _state.on_retire(reason)
    else:
        send({"cmd": contract.RETIRE, "reason": reason, "traceback": ""})


# For the runtime.


def attach(channel: Channel | None, on_retire: Callable[[str], None]) -> None:
    """The runtime has the channel, and retires in its own way."""
    _state.channel = channel
    _state.on_retire = on_retire


def deliver(message: Any, handle: socket.socket | None) -> None:
    """A message for the program; whoever listens owns the handle."""
    _state.deliver(message, handle)


def disconnected() -> None:
    """The supervisor is gone."""
    _state.lost()
