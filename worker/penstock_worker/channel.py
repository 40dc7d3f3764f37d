"""JSON lines with descriptors beside them, between the supervisor and one child, both ends.

A channel is one half of a Unix stream socket pair that was made before the child was
started; `contract.CHANNEL_FD` tells a child which descriptor it is. The wire is that of
Node's child processes: one JSON value a line, and a descriptor travels beside the line
`{"cmd": "NODE_HANDLE", "type": …, "msg": …}`, one at a time, each acknowledged before the
next (on a stream two of them can merge and one be lost). What messages mean is not known
here.

The two ends do not trust each other to be quick or sane. Sending never waits: what the
kernel does not take is kept, up to a bound, because a peer that has stopped reading must
not stop us, nor make us grow. A peer that talks garbage, or sends what nobody asked for, is
cut off, and `fault` says why; end-of-file is how each side learns that the other is gone, so
there is no heartbeat.

Callbacks and not streams: the channel can then be made before the event loop runs, and a
child that is about to exit can be sure that its last word has left.
"""

import array
import json
import logging
import os
import socket
import stat
from asyncio import AbstractEventLoop, Handle
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final, NamedTuple

from penstock_worker.contract import CHANNEL_FD

MAX_LINE: Final = 1 << 20
"""Bytes of one message. The largest is a configuration with its text escaped."""
MAX_UNSENT: Final = 4 << 20
"""Bytes that wait for a slow peer. Beyond it the peer is not slow but has stopped reading."""
MAX_HANDLES: Final = 64
"""Descriptors that wait to be sent, each a copy that is open meanwhile."""
_MAX_STRAY: Final = 16
"""Descriptors that arrived and whose lines have not: a line may take many reads."""
_RECEIVE: Final = 64 << 10
_READS: Final = 16
"""Reads at one go: more than a socket buffer holds, and no more, or a peer that talks without
a pause would have the loop for itself."""
_TRIES: Final = 4
"""How often a descriptor is sent that the peer has no room for (Node: three times again)."""

HANDLE: Final = "NODE_HANDLE"
ACK: Final = "NODE_HANDLE_ACK"
NACK: Final = "NODE_HANDLE_NACK"

Message = dict[str, Any]
OnMessage = Callable[[Any, socket.socket | None], None]
_logger: Final = logging.getLogger(__name__)


class _Parcel(NamedTuple):
    """A line that waits to be sent, and the descriptor that goes with its first byte."""

    line: bytes
    handle: socket.socket | None
    on_sent: Callable[[bool], None] | None


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
        self._tries = 0
        self._unsent = 0
        """Bytes of all parcels that wait."""
        self._deaf = False
        """The peer takes nothing any more; its last words may still be unread."""
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
        MAX_LINE, for which the peer would cut us off. TypeError: a handle that is none.
        """
        if handle is not None:
            message = envelope(message, handle)
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"a message of {len(line)} bytes is too long")
        if self.closed or self._deaf:
            return False
        if handle is not None:
            handle.setblocking(False)
            handle = handle.dup()
        self._unsent += len(line)
        self._queue.append(_Parcel(line, handle, on_sent))
        self._advance()
        handles = sum(parcel.handle is not None for parcel in self._queue) if handle else 0
        if self._unsent > MAX_UNSENT:
            self._cut_off(f"the peer left {self._unsent} bytes unread")
        elif handles > MAX_HANDLES:
            self._cut_off(f"the peer left {handles} descriptors untaken")
        return True

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
            if parcel.handle is not None:
                self._pending, self._tries = parcel, 1
        self._flush()

    def _urgent(self, command: str) -> None:
        """An acknowledgement: past the queue, or two peers with handles wait for ever."""
        line = b'{"cmd":"%b"}\n' % command.encode()
        self._unsent += len(line)
        self._writing.append(_Parcel(line, None, None))
        self._flush()

    def _flush(self) -> None:
        # At once when it can be: a child says why it failed and exits without another turn
        # of its loop.
        while self._writing and not self._deaf and not self.closed:
            parcel = self._writing[0]
            sent = self._write(parcel)
            if sent < 0:
                self._loop.add_writer(self._sock, self._writable)
                return
            self._unsent -= sent
            self._writing.popleft()
            if sent < len(parcel.line) and not self._deaf:
                # The descriptor went with the first byte.
                self._writing.appendleft(_Parcel(parcel.line[sent:], None, None))

    def _write(self, parcel: _Parcel) -> int:
        """Bytes that the kernel took; -1 if it has no room."""
        rights: list[tuple[int, int, array.array[int]]] = []
        if parcel.handle is not None:
            fds = array.array("i", [parcel.handle.fileno()])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            return self._sock.sendmsg([parcel.line], rights)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError:
            # Not yet the end: what the peer said before it left is still to be read, and
            # reading finds the end-of-file by itself.
            self._deaf = True
            return len(parcel.line)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _acknowledged(self, taken: bool) -> None:
        parcel = self._pending
        if parcel is None or parcel.handle is None:
            self._cut_off("an acknowledgement that nobody asked for")
            return
        if not taken and self._tries < _TRIES:
            self._tries += 1
            self._unsent += len(parcel.line)
            self._writing.append(parcel)
            self._flush()
            return
        if not taken:
            _logger.warning("channel: the peer cannot take a descriptor; it is given up")
        self._pending = None
        parcel.handle.close()
        self._tell(parcel, taken)
        if not self.closed:
            self._advance()

    # Receiving.

    def _read(self) -> None:
        # Until there is no more: a peer that closes with our words unread makes an error
        # condition, at which uvloop calls a reader once and then never again.
        for _ in range(_READS):
            try:
                data = self._receive()
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

    def _receive(self) -> bytes:
        space = socket.CMSG_SPACE(_MAX_STRAY * 4)
        data, ancillary, _, _ = self._sock.recvmsg(_RECEIVE, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._arrived.extend(fds)
        return data

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
            message = _parse(line)
        except ValueError as error:
            self._cut_off(str(error))
            return
        command = message.get("cmd") if isinstance(message, dict) else None
        if command == HANDLE:
            self._take_handle(message)
        elif command in (ACK, NACK):
            self._acknowledged(command == ACK)
        else:
            self._hand_on(message, None)

    def _take_handle(self, message: dict[str, Any]) -> None:
        if not self._arrived:
            # We are out of descriptors: the kernel dropped it. It is sent again.
            self._urgent(NACK)
            return
        fd = self._arrived.popleft()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            self._cut_off("a descriptor that is no socket")
            return
        handle = socket.socket(fileno=fd)
        handle.setblocking(False)
        self._urgent(ACK)
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
        waiting = [parcel for parcel in (self._pending, *self._queue) if parcel is not None]
        self._release()
        self._farewell = self._loop.call_soon(self._part, waiting)

    def _part(self, waiting: list[_Parcel]) -> None:
        for parcel in waiting:
            self._tell(parcel, taken=False)
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
        self._unsent = 0


def envelope(message: Any, handle: socket.socket) -> dict[str, Any]:
    """The line that a socket travels with; TypeError if it is none that can."""
    if not isinstance(handle, socket.socket) or handle.fileno() < 0:
        raise TypeError(f"expected an open socket, not {type(handle).__name__}")
    found: dict[str, Any] = {"cmd": HANDLE, "type": "net.Socket", "msg": message}
    if handle.type == socket.SOCK_DGRAM and handle.family in (socket.AF_INET, socket.AF_INET6):
        six = handle.family == socket.AF_INET6
        return {**found, "type": "dgram.Socket", "dgramType": "udp6" if six else "udp4"}
    if handle.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        raise TypeError(f"a socket of {handle.family!r}, {handle.type!r} cannot be sent")
    if handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found["type"] = "net.Server"
    return found


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


def _parse(line: bytearray) -> Any:
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE} bytes")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {bytes(line[:80])!r}") from None
