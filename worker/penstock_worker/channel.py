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
import errno
import logging
import os
import socket
import stat
from asyncio import AbstractEventLoop, Handle, TimerHandle
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Final, NamedTuple

from penstock_worker import wire
from penstock_worker.contract import CHANNEL_FD

MAX_LINE: Final = wire.MAX_LINE
MAX_UNSENT: Final = 4 << 20
"""Bytes that wait for a slow peer. Beyond it the peer is not slow but has stopped reading."""
MAX_LINES: Final = 1 << 16
"""The same for messages of a few bytes, each of which costs more than those."""
MAX_HANDLES: Final = 64
"""Descriptors that wait to be sent, each a copy that is open meanwhile."""
_MOST_AT_ONCE: Final = 16
"""Descriptors of one read that we see and can name. The kernel closes what is beyond."""
_RECEIVE: Final = 64 << 10
_READS: Final = 16
"""Reads at one go: more than a socket buffer holds, and no more, or a peer that talks without
a pause would have the loop for itself."""
_TRIES: Final = 4
"""How often a descriptor is sent that the peer has no room for (Node: three times again)."""
_SHORT: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The kernel is short of something; the peer is well."""
_PAUSE_S: Final = 0.05

Message = dict[str, Any]
OnMessage = Callable[[Any, socket.socket | None], None]
_logger: Final = logging.getLogger(__name__)


class _Parcel(NamedTuple):
    """A line that waits to be sent, and the descriptor that goes with its first byte."""

    line: bytes
    handle: socket.socket | None = None
    on_sent: Callable[[bool], None] | None = None
    asks: bool = False
    """Its last byte asks for an acknowledgement."""
    answers: bool = False
    """It is one."""


class Channel:
    """One end; owns `sock`, which must be non-blocking.

    `on_message(value, handle)` gets every message in order, and owns the handle, if there
    is one: a socket that does not block. `on_disconnect` is called once, after the last
    message, when the peer is gone or was cut off; never from within `send`. After `close`
    neither is called.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        on_message: OnMessage,
        on_disconnect: Callable[[], None],
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
        self._writing: deque[_Parcel] = deque()
        self._queue: deque[_Parcel] = deque()
        """Behind the handle that waits to be acknowledged."""
        self._pending: _Parcel | None = None
        """That handle. There is one at a time."""
        self._handles = 0
        """Those that are not acknowledged, all in all."""
        self._asked = False
        """All of it is with the peer, which may answer now."""
        self._answering = False
        """Our own answer has not left yet, so the peer cannot send a handle again."""
        self._tries = 0
        self._unsent = 0
        """Bytes of all parcels that wait."""
        self._deaf = False
        """The peer takes nothing any more; its last words may still be unread."""
        self._again: Handle | None = None
        self._pause: TimerHandle | None = None
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
        if self.closed or self._deaf:
            return False
        if handle is None:
            parcel = _Parcel(line)
        else:
            handle.setblocking(False)
            parcel = _Parcel(line, handle.dup(), on_sent, asks=True)
            self._handles += 1
        self._unsent += len(line)
        self._queue.append(parcel)
        self._advance()
        if self._unsent > MAX_UNSENT:
            self._cut_off(f"the peer left {self._unsent} bytes unread")
        elif len(self._queue) + len(self._writing) > MAX_LINES:
            self._cut_off(f"the peer left more than {MAX_LINES} messages unread")
        elif self._handles > MAX_HANDLES:
            self._cut_off(f"the peer left {self._handles} descriptors untaken")
        return True

    @property
    def crowded(self) -> bool:
        """One message more may be too much; who sends much at once can look here first."""
        return (
            self._handles >= MAX_HANDLES
            or self._unsent >= MAX_UNSENT - MAX_LINE
            or len(self._queue) + len(self._writing) >= MAX_LINES
        )

    def close(self) -> None:
        """Leave; what the kernel has not taken yet is lost."""
        self._release()
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None

    # Sending.

    def _advance(self) -> None:
        """Write what may be written: everything up to the next handle, and that one."""
        while self._queue and self._pending is None:
            parcel = self._queue.popleft()
            self._writing.append(parcel)
            if parcel.asks:
                self._pending, self._tries, self._asked = parcel, 1, False
        self._flush()

    def _answer(self, command: str) -> None:
        """Acknowledge, past the queue: two peers with handles would wait for ever."""
        if self._deaf:
            return
        if self._answering:
            self._cut_off("descriptors that do not wait to be acknowledged")
            return
        line = wire.encoded({"cmd": command})
        self._answering = True
        self._unsent += len(line)
        self._writing.append(_Parcel(line, answers=True))
        self._flush()

    def _flush(self) -> None:
        # At once when it can be: a child says why it failed and exits without another turn
        # of its loop.
        while self._writing and not self._deaf and not self.closed:
            parcel = self._writing[0]
            sent = self._write(parcel)
            if sent < 0:
                return
            self._unsent -= sent
            self._writing.popleft()
            if sent < len(parcel.line):
                # The descriptor went with the first byte.
                self._writing.appendleft(parcel._replace(line=parcel.line[sent:], handle=None))
            elif parcel.asks:
                self._asked = True
            elif parcel.answers:
                self._answering = False

    def _write(self, parcel: _Parcel) -> int:
        """Bytes that the kernel took; -1 if it has no room, and `_flush` is called again."""
        rights: list[tuple[int, int, array.array[int]]] = []
        if parcel.handle is not None:
            fds = array.array("i", [parcel.handle.fileno()])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            return self._sock.sendmsg([parcel.line], rights)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._writable)
        except OSError as error:
            if error.errno not in _SHORT:
                # Not yet the end: what the peer said before it left is still to be read, and
                # reading finds the end-of-file by itself.
                self._deaf = True
                return len(parcel.line)
            if self._pause is None:
                _logger.warning("channel: %s; trying again", error.strerror)
                self._pause = self._loop.call_later(_PAUSE_S, self._resumed)
        return -1

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _resumed(self) -> None:
        self._pause = None
        self._flush()

    def _acknowledged(self, taken: bool) -> None:
        parcel = self._pending
        if parcel is None or parcel.handle is None or not self._asked:
            self._cut_off("an acknowledgement that nobody asked for")
            return
        self._asked = False
        if not taken and self._tries < _TRIES:
            self._tries += 1
            self._unsent += len(parcel.line)
            self._writing.append(parcel)
            self._flush()
            return
        if not taken:
            _logger.warning("channel: the peer cannot take a descriptor; it is given up")
        self._pending = None
        self._handles -= 1
        parcel.handle.close()
        self._tell(parcel, taken)
        if not self.closed:
            self._advance()

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
            self._acknowledged(command == wire.ACK)
        else:
            self._hand_on(message, None)

    def _take_handle(self, message: dict[str, Any]) -> None:
        if not self._arrived:
            # We are out of descriptors: the kernel dropped it. It is sent again.
            self._answer(wire.NACK)
            return
        fd = self._arrived.popleft()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            self._cut_off("a descriptor that is no socket")
            return
        handle = socket.socket(fileno=fd)
        handle.setblocking(False)
        self._answer(wire.ACK)
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
        # Who waits for a handle hears of its loss; others see that the channel is closed.
        waiting = [parcel for parcel in (self._pending, *self._queue) if parcel is not None]
        self._release()
        self._farewell = self._loop.call_soon(self._part, waiting)

    def _part(self, waiting: list[_Parcel]) -> None:
        for parcel in waiting:
            self._tell(parcel, taken=False)
            if self._farewell is None:
                return
        self._on_disconnect()

    def _tell(self, parcel: _Parcel, taken: bool) -> None:
        if parcel.on_sent is None:
            return
        try:
            parcel.on_sent(taken)
        except Exception:
            _logger.exception("channel: who was told of a descriptor failed")

    def _release(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for timer in (self._again, self._pause):
            if timer is not None:
                timer.cancel()
        self._sock.close()
        for parcel in (self._pending, *self._queue):
            if parcel is not None and parcel.handle is not None:
                parcel.handle.close()
        for fd in self._arrived:
            os.close(fd)
        self._received.clear()
        self._arrived.clear()
        self._writing.clear()
        self._queue.clear()
        self._pending = None
        self._unsent = self._handles = 0


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
