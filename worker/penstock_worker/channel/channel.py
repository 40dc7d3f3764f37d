"""JSON lines with descriptors beside them, between the supervisor and one child, both ends.

A channel is one half of a Unix stream socket pair that was made before the child was
started; `contract.CHANNEL_FD` tells a child which descriptor it is. Owns what is read; the
format is `framing`, and what waits to be sent is `send_queue`. Must not know what messages mean.

Neither end relies on the other to be quick or correct. Sending never waits: what the kernel does
not take is kept, up to a bound, because a peer that has stopped reading must neither stop us
nor make us grow. A program that sends too much for a slow peer is refused (`send_for_program`)
and may wait for `room`. A peer that breaks the protocol is cut off, and `fault` says why. Each
side learns by end-of-file that the other is gone, so there is no heartbeat.

It uses callbacks and not asyncio's streams: a channel can then be made before the event loop
runs, and a child that is about to exit can be sure that its last message has left (`flush`), even
when its loop is closed.
"""

import array
import errno
import logging
import os
import select
import socket
import stat
from asyncio import AbstractEventLoop, Future, Handle
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from time import monotonic
from typing import Any, Final, cast

from penstock_worker.channel import framing, send_queue
from penstock_worker.channel.closed_loop import ClosedLoop
from penstock_worker.channel.send_queue import QueuedMessage, SendQueue
from penstock_worker.contract import CHANNEL_FD
from penstock_worker.net.stream import inherited_end

MAX_LINE: Final = framing.MAX_LINE
MAX_UNSENT: Final = send_queue.MAX_UNSENT
MAX_HANDLES: Final = send_queue.MAX_HANDLES
ACK: Final = framing.ACK
envelope = framing.envelope
_MAX_FDS: Final = 16
"""Descriptors of one read that can be counted for the log. The kernel closes what is beyond."""
_READ_SIZE: Final = 8 << 10
_MAX_READ_LINES: Final = 64
"""Lines after which others have their turn: of short ones, many fit into a read, and each costs
what any message costs."""
_MAX_READS: Final = 4
"""Reads in a row, which are decoded in a quarter of a millisecond. A peer that sends without a
pause must not keep the loop for itself."""
_MAX_PENDING_READS: Final = 1 << 10
"""Reads of what an ended peer left. That is no more than a socket buffer, but something that it
started may still write."""

Message = dict[str, Any]
OnMessage = Callable[[Any, socket.socket | None], None]
_logger: Final = logging.getLogger("penstock.channel")


class Channel:
    """One end; owns `sock`, which must be non-blocking.

    `on_message(value, handle)` gets every message in order, and owns the handle, if there
    is one: a non-blocking socket. `on_disconnect` is called once, after the last
    message, when the peer is gone or was cut off; never from within `send`. After `close`
    neither is called. `max_handles`: how many handles may wait to be sent.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        on_message: OnMessage,
        on_disconnect: Callable[[], None],
        max_handles: int = MAX_HANDLES,
    ) -> None:
        self.closed = False
        self.fault = ""
        """Why we cut the peer off; empty while it is connected, and if it closed its end itself."""
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._received = bytearray()
        self._fds: deque[int] = deque()
        """Received descriptors, in the order of the lines that they belong to."""
        self._send_queue = SendQueue(loop, sock, self._cut_off, self._read_soon, max_handles)
        self._next_read: Handle | None = None
        self._closing: Handle | None = None
        self._room: Future[None] | None = None
        self._flushing = False
        """It is about to be closed: nobody is there for what arrives."""
        loop.add_reader(sock, self._read)

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """Queue one message, with a copy of the handle; False if the peer is gone.

        `on_sent` is called with True if the peer has the handle, else with False. ValueError: not
        JSON, or a line over MAX_LINE, for which the peer would cut us off. TypeError: a handle
        that cannot be sent. OSError: no descriptor is left for the copy.
        """
        if framing.command(message) in (framing.HANDLE, framing.ACK, framing.NACK):
            raise ValueError(f"{framing.command(message)} is the channel's own")
        line = framing.encode(message if handle is None else framing.envelope(message, handle))
        if self.closed or self._send_queue.unwritable:
            return False
        if handle is None:
            self._send_queue.put(QueuedMessage(line))
        else:
            handle.setblocking(False)
            self._send_queue.put(QueuedMessage(line, handle.dup(), on_sent, wants_ack=True))
        return True

    def send_each(self, messages: Iterable[Any]) -> bool:
        """`send` all of these, with nothing between them and however long they are together. False
        if the peer is gone. ValueError as there, and nothing is sent.

        For what is said seldom: nothing here bounds how much of it waits.
        """
        lines = [framing.encode(message) for message in messages]
        if self.closed or self._send_queue.unwritable:
            return False
        self._send_queue.put_each(lines)
        return True

    def send_for_program(self, message: Any, handle: socket.socket | None = None) -> bool:
        """`send`, for messages whose number nobody bounds. OSError (ENOBUFS): too much waits."""
        if self._send_queue.congested and not self.closed:
            raise OSError(errno.ENOBUFS, "too many messages wait to be sent")
        return self.send(message, handle)

    @property
    def congested(self) -> bool:
        """A program's next message would be refused."""
        return self._send_queue.congested

    def room(self) -> Future[None]:
        """Done when it is not congested any more, or is closed."""
        if self._room is None or self._room.done():
            self._room = self._loop.create_future()
            if self.closed or not self._send_queue.congested:
                self._room.set_result(None)
            else:
                self._send_queue.on_room = self._tell_room
        return self._room

    def _tell_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def read_pending(self) -> None:
        """Read what has arrived; for a caller that knows in another way that the peer is gone."""
        self._read(_MAX_PENDING_READS)

    def fileno(self) -> int:
        """-1 if it is closed."""
        return self._sock.fileno()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; for a process that is about to exit. Close it then.

        It needs no loop. What arrives meanwhile is dropped. False: not everything was sent.
        """
        if self._loop.is_closed():
            self._loop = cast("AbstractEventLoop", ClosedLoop())
            self._send_queue.leave_loop(self._loop)
        self._flushing = True
        ends_at = monotonic() + timeout_s
        queue, poll = self._send_queue, select.poll()
        while not self.closed and not queue.empty and (left_s := ends_at - monotonic()) > 0:
            poll.register(self._sock, select.POLLIN if queue.awaits_ack else select.POLLOUT)
            poll.poll(1000 * left_s)
            if queue.awaits_ack:
                self._read()
            queue.flush()
        return queue.empty

    def close(self) -> None:
        """Close it; what the kernel has not taken yet is lost."""
        self._release()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    # Receiving.

    def _read(self, times: int = _MAX_READS) -> None:
        # Until there is no more: a peer that closes with our messages unread causes an error
        # condition, for which uvloop calls a reader once and then never again.
        lines = 0
        for _ in range(times):
            if self.closed or (lines >= _MAX_READ_LINES and times == _MAX_READS):
                break
            try:
                data, fds = self._receive()
            except (BlockingIOError, InterruptedError):
                if self._send_queue.unwritable:
                    # The peer has shut down only its reading half: no end-of-file will come.
                    self._disconnect()
                return
            except OSError:
                # The same peer, after its last message: the connection is reset.
                data, fds = b"", ()
            if not data:
                self._disconnect()
            elif len(fds) > 1:
                self._cut_off(f"{len(fds)} descriptors with one line")
            else:
                lines += data.count(b"\n")
                self._split(data)
        self._read_soon()

    def _read_soon(self) -> None:
        if not self.closed and self._next_read is None:
            self._next_read = self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._next_read = None
        self._read()

    def _receive(self) -> tuple[bytes, Sequence[int]]:
        # The kernel ends a read after bytes that carried descriptors: descriptors that come
        # together were sent together.
        space = socket.CMSG_SPACE(_MAX_FDS * 4)
        data, ancillary, _, _ = self._sock.recvmsg(_READ_SIZE, space, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self._fds.extend(fds)
        return data, fds

    def _split(self, data: bytes) -> None:
        self._received += data
        if b"\n" in data:
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                self._handle_line(line)
                if self.closed:
                    return
        if len(self._received) > MAX_LINE:
            self._cut_off(f"a line of more than {MAX_LINE} bytes")
        elif len(self._fds) > (1 if self._received else 0):
            # One may belong to the line that is still coming.
            self._cut_off("a descriptor that nobody asked for")

    def _handle_line(self, line: bytearray) -> None:
        try:
            message = framing.decode(line)
        except ValueError as error:
            self._cut_off(str(error))
            return
        command = framing.command(message)
        if command == framing.HANDLE:
            self._receive_handle(message)
        elif command in (framing.ACK, framing.NACK):
            self._send_queue.on_acknowledged(command == framing.ACK)
        else:
            self._dispatch(message, None)

    def _receive_handle(self, message: dict[str, Any]) -> None:
        if not self._fds:
            # We are out of descriptors: the kernel dropped it. It is sent again.
            self._send_queue.acknowledge(framing.NACK)
            return
        fd = self._fds.popleft()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            self._cut_off("a descriptor that is no socket")
            return
        handle = socket.socket(fileno=fd)
        handle.setblocking(False)
        self._send_queue.acknowledge(framing.ACK)
        if self.closed:
            handle.close()
        else:
            self._dispatch(message.get("msg"), handle)

    def _dispatch(self, message: Any, handle: socket.socket | None) -> None:
        if self._flushing:
            if handle is not None:
                handle.close()
            return
        try:
            self._on_message(message, handle)
        except Exception:
            # An error in the callback must not cost the program the messages after this one.
            _logger.exception("channel: could not handle %.80r", message)

    # The end.

    def _cut_off(self, why: str) -> None:
        self.fault = why
        _logger.error("channel: closed: %s", why)
        self._disconnect()

    def _disconnect(self) -> None:
        if self.closed:
            return
        self._closing = self._loop.call_soon(self._finish_closing, self._release())

    def _finish_closing(self, waiting: list[QueuedMessage]) -> None:
        for message in waiting:
            send_queue.report(message, taken=False)
            if self._closing is None:
                return
        self._on_disconnect()

    def _release(self) -> list[QueuedMessage]:
        """Close everything; returns what was not sent, or not acknowledged."""
        if self.closed:
            return []
        self.closed = True
        self._loop.remove_reader(self._sock)
        waiting = self._send_queue.close()
        if self._next_read is not None:
            self._next_read.cancel()
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._received.clear()
        self._fds.clear()
        return waiting


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, non-blocking and close-on-exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    return ends


def inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """Adopt the end that `environ` names, and remove the variable; None if there is none.

    ValueError if the descriptor cannot be a channel.
    """
    number = environ.pop(CHANNEL_FD, None)
    return None if number is None else inherited_end(CHANNEL_FD, number, socket.SOCK_STREAM)
