"""JSON lines between the supervisor and one child, both ends.

A channel is one half of a Unix stream socket pair that was made before the child was
started. A message is one JSON object on one line; its `cmd` says what it is, and what the
commands mean is not known here. `contract.CHANNEL_FD` tells a child which descriptor it is.

The two ends do not trust each other to be quick or sane. Sending never waits: what the
kernel does not take is kept, up to a bound, because a peer that has stopped reading must
not stop us, nor make us grow. A peer that talks garbage is cut off; end-of-file is how
each side learns that the other is gone, so there is no heartbeat.

Callbacks and not streams: the channel can then be made before the event loop runs, and a
child that is about to exit can be sure that its last word has left.
"""

import json
import logging
import os
import socket
from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from penstock_worker.contract import CHANNEL_FD

Message = dict[str, Any]

MAX_LINE: Final = 1 << 20
"""Bytes of one message. The largest is a configuration with its text escaped."""
MAX_UNSENT: Final = 4 << 20
"""Bytes that wait for a slow peer. Beyond it the peer is not slow but has stopped reading."""
_RECEIVE: Final = 64 << 10
_READS: Final = 16
"""Reads at one go: more than a socket buffer holds, and no more, or a peer that talks without
a pause would have the loop for itself."""

_logger: Final = logging.getLogger(__name__)


class Channel:
    """One end; owns `sock`, which must be non-blocking.

    `on_message` gets every message in order. `on_disconnect` is called once, after the last
    message, when the peer is gone or was cut off; never from within `send`. After `close`
    neither is called.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self.closed = False
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._received = bytearray()
        self._unsent = bytearray()
        self._deaf = False
        """The peer takes nothing any more; its last words may still be unread."""
        self._farewell: Handle | None = None
        loop.add_reader(sock, self._read)

    def send(self, message: Message) -> None:
        """Queue one message; dropped without a word if the peer is gone.

        ValueError if its line is over MAX_LINE: the peer would cut us off for it.
        """
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"a {message.get('cmd')} message of {len(line)} bytes is too long")
        if self.closed or self._deaf:
            return
        waiting = bool(self._unsent)
        self._unsent += line
        if not waiting:
            # At once when it can be: a child says why it failed and exits without another
            # turn of its loop.
            self._write()
            if self._unsent:
                self._loop.add_writer(self._sock, self._write)
        if len(self._unsent) > MAX_UNSENT:
            self._cut_off(f"the peer left {len(self._unsent)} bytes unread")

    def close(self) -> None:
        """Leave; what the kernel has not taken yet is lost."""
        self._release()
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Not yet the end: what the peer said before it left is still to be read, and
            # reading finds the end-of-file by itself.
            self._deaf = True
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        # Until there is no more: a peer that closes with our words unread makes an error
        # condition, at which uvloop calls a reader once and then never again.
        for _ in range(_READS):
            try:
                data = self._sock.recv(_RECEIVE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # The same peer: reset, after its last words.
                data = b""
            if not data:
                self._lose()
            else:
                self._split(data)
            if self.closed:
                return

    def _split(self, data: bytes) -> None:
        self._received += data
        if b"\n" in data:
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                self._take(line)
                if self.closed:
                    return
        if len(self._received) > MAX_LINE:
            self._cut_off(f"a line of more than {MAX_LINE} bytes")

    def _take(self, line: bytearray) -> None:
        try:
            message = _parse(line)
        except ValueError as error:
            self._cut_off(str(error))
            return
        try:
            self._on_message(message)
        except Exception:
            # A receiver's mistake must not cost it the messages behind this one.
            _logger.exception("channel: could not handle %r", message["cmd"])

    def _cut_off(self, why: str) -> None:
        _logger.error("channel: closed: %s", why)
        self._lose()

    def _lose(self) -> None:
        self._release()
        self._farewell = self._loop.call_soon(self._on_disconnect)

    def _release(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._received.clear()
        self._unsent.clear()


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, non-blocking and close-on-exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    return ends


def inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """Adopt the end that `environ` names and take its name away; None if there is none.

    ValueError if what is named cannot be a channel. Afterwards no child of ours can find it:
    the descriptor is close-on-exec.
    """
    number = environ.pop(CHANNEL_FD, None)
    if number is None:
        return None
    try:
        sock = socket.socket(fileno=int(number))
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{CHANNEL_FD}={number!r} is no socket: {error}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        sock.detach()
        raise ValueError(f"{CHANNEL_FD}={number!r} is no Unix stream socket")
    os.set_inheritable(sock.fileno(), False)
    sock.setblocking(False)
    return sock


def _parse(line: bytearray) -> Message:
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE} bytes")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {bytes(line[:80])!r}") from None
    if isinstance(message, dict) and isinstance(message.get("cmd"), str):
        return message
    raise ValueError(f"not a message: {bytes(line[:80])!r}")
