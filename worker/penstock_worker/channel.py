"""JSON lines with descriptors beside them, between the supervisor and one child, both ends.

A channel is one half of a Unix stream socket pair that was made before the child was
started; `contract.CHANNEL_FD` tells a child which descriptor it is. Lines and envelopes are
those of `wire`. A descriptor is acknowledged before anything else is sent: on a stream two
of them can overtake the lines that they belong to. What messages mean is not known here.

The two ends do not trust each other to be quick or sane. Sending never waits: what the
kernel does not take is kept, up to a bound, because a peer that has stopped reading must
not stop us, nor make us grow. A peer that talks garbage, or sends what nobody asked for, is
cut off, and `fault` says why; end-of-file is how each side learns that the other is gone, so
there is no heartbeat.

Callbacks and not streams: the channel can then be made before the event loop runs, and a
child that is about to exit can be sure that its last word has left.
"""

import array
import logging
import os
import socket
import stat
from asyncio import AbstractEventLoop, Handle
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Final

from penstock_worker import outgoing, wire
from penstock_worker.contract import CHANNEL_FD
from penstock_worker.outgoing import Outgoing, Parcel
from penstock_worker.streams import inherited_end

MAX_LINE: Final = wire.MAX_LINE
MAX_UNSENT: Final = outgoing.MAX_UNSENT
MAX_HANDLES: Final = outgoing.MAX_HANDLES
ACK: Final = wire.ACK
envelope = wire.envelope
_MOST_AT_ONCE: Final = 16
"""Descriptors of one read that we see and can name. The kernel closes what is beyond."""
_RECEIVE: Final = 64 << 10
_READS: Final = 16
"""Reads at one go: more than a socket buffer holds, and no more, or a peer that talks without
a pause would have the loop for itself."""

Message = dict[str, Any]
OnMessage = Callable[[Any, socket.socket | None], None]
_logger: Final = logging.getLogger("penstock.channel")


class Channel:
    """One end; owns `sock`, which must be non-blocking.

    `on_message(value, handle)` gets every message in order, and owns the handle, if there
    is one: a socket that does not block. `on_disconnect` is called once, after the last
    message, when the peer is gone or was cut off; never from within `send`. After `close`
    neither is called. `most_handles`: of those that wait; for who has to send more at one go.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        on_message: OnMessage,
        on_disconnect: Callable[[], None],
        most_handles: int = MAX_HANDLES,
    ) -> None:
        self.closed = False
        self.fault = ""
        """Why we cut the peer off; empty while all is well, and if it just left."""
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._received = bytearray()
        self._arrived: deque[int] = deque()
        """Descriptors that came, in the order of the lines that they belong to."""
        self._outgoing = Outgoing(loop, sock, self._cut_off, self._read_soon, most_handles)
        self._again: Handle | None = None
        self._farewell: Handle | None = None
        loop.add_reader(sock, self._read)

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """Queue one message, with a copy of the handle; False if the peer is gone.

        `on_sent` hears whether the peer has the handle. ValueError: not JSON, or a line over
        MAX_LINE, for which the peer would cut us off. TypeError: a handle that cannot travel.
        OSError: no descriptor is left for the copy.
        """
        if wire.command(message) in (wire.HANDLE, wire.ACK, wire.NACK):
            raise ValueError(f"{wire.command(message)} is the channel's own")
        line = wire.encoded(message if handle is None else wire.envelope(message, handle))
        if self.closed or self._outgoing.deaf:
            return False
        if handle is None:
            self._outgoing.put(Parcel(line))
        else:
            handle.setblocking(False)
            self._outgoing.put(Parcel(line, handle.dup(), on_sent, asks=True))
        return True

    @property
    def crowded(self) -> bool:
        """One message more may be too much; who sends much at once can look here first."""
        return self._outgoing.crowded

    def hear_out(self) -> None:
        """Read what has come by now; for who has heard from elsewhere that the peer is gone."""
        self._read()

    def close(self) -> None:
        """Leave; what the kernel has not taken yet is lost."""
        self._release()
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None

    # Receiving.

    def _read(self) -> None:
        # Until there is no more: a peer that closes with our words unread makes an error
        # condition, at which uvloop calls a reader once and then never again.
        for _ in range(_READS):
            if self.closed:
                return
            try:
                data, fds = self._receive()
            except (BlockingIOError, InterruptedError):
                if self._outgoing.deaf:
                    # It has shut down its reading half only, and no end-of-file ever comes.
                    self._lose()
                return
            except OSError:
                # The same peer: reset, after its last words.
                data, fds = b"", ()
            if not data:
                self._lose()
            elif len(fds) > 1:
                self._cut_off(f"{len(fds)} descriptors with one line")
            else:
                self._split(data)
        self._read_soon()

    def _read_soon(self) -> None:
        if not self.closed and self._again is None:
            self._again = self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._again = None
        self._read()

    def _receive(self) -> tuple[bytes, Sequence[int]]:
        # The kernel ends a read behind bytes that carried descriptors: those that come
        # together were sent together.
        space = socket.CMSG_SPACE(_MOST_AT_ONCE * 4)
        data, ancillary, _, _ = self._sock.recvmsg(_RECEIVE, space, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self._arrived.extend(fds)
        return data, fds

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
        elif len(self._arrived) > (1 if self._received else 0):
            # One may belong to the line that is still coming.
            self._cut_off("a descriptor that nobody asked for")

    def _take(self, line: bytearray) -> None:
        try:
            message = wire.decoded(line)
        except ValueError as error:
            self._cut_off(str(error))
            return
        command = wire.command(message)
        if command == wire.HANDLE:
            self._take_handle(message)
        elif command in (wire.ACK, wire.NACK):
            self._outgoing.acknowledged(command == wire.ACK)
        else:
            self._hand_on(message, None)

    def _take_handle(self, message: dict[str, Any]) -> None:
        if not self._arrived:
            # We are out of descriptors: the kernel dropped it. It is sent again.
            self._outgoing.answer(wire.NACK)
            return
        fd = self._arrived.popleft()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            self._cut_off("a descriptor that is no socket")
            return
        handle = socket.socket(fileno=fd)
        handle.setblocking(False)
        self._outgoing.answer(wire.ACK)
        if self.closed:
            handle.close()
        else:
            self._hand_on(message.get("msg"), handle)

    def _hand_on(self, message: Any, handle: socket.socket | None) -> None:
        try:
            self._on_message(message, handle)
        except Exception:
            # A receiver's mistake must not cost it the messages behind this one.
            _logger.exception("channel: could not handle %.80r", message)

    # The end.

    def _cut_off(self, why: str) -> None:
        self.fault = why
        _logger.error("channel: closed: %s", why)
        self._lose()

    def _lose(self) -> None:
        if self.closed:
            return
        self._farewell = self._loop.call_soon(self._part, self._release())

    def _part(self, waiting: list[Parcel]) -> None:
        for parcel in waiting:
            outgoing.tell(parcel, taken=False)
            if self._farewell is None:
                return
        self._on_disconnect()

    def _release(self) -> list[Parcel]:
        """Let go of everything; returns what was not sent, or not acknowledged."""
        if self.closed:
            return []
        self.closed = True
        self._loop.remove_reader(self._sock)
        waiting = self._outgoing.close()
        if self._again is not None:
            self._again.cancel()
        self._sock.close()
        for fd in self._arrived:
            os.close(fd)
        self._received.clear()
        self._arrived.clear()
        return waiting


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, non-blocking and close-on-exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    return ends


def inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """Adopt the end that `environ` names and take its name away; None if there is none.

    ValueError if what is named cannot be a channel.
    """
    number = environ.pop(CHANNEL_FD, None)
    return None if number is None else inherited_end(CHANNEL_FD, number, socket.SOCK_STREAM)
