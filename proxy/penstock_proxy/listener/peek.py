"""A connection that is looked at before anybody owns it: bytes are seen, and stay where they are.

Owns: its descriptor from the moment it is let in until it is handed on or closed, the time
that it has, and when to look again. Must not know: what is looked for (`proxy_protocol`,
`sni_router`).

It works on the bare descriptor: what a transport has read nobody can put back. Nobody in
here makes us spin, however slowly the bytes come. While what was seen is not enough, the
kernel is told to wake us for more than that (SO_RCVLOWAT); where it wakes us for the same
bytes again (unix sockets know no such mark, and an end overrides it), the next tick looks.
"""

import asyncio
import select
import socket
from typing import Final

from penstock_proxy.net.timer_wheel import NEVER, TimerWheel
from penstock_worker.net.stream import Stream

STOPPING_S: Final = 1.0
"""For one that is here when we stop."""
# Plain numbers: Python 3.11 takes longer to find a member of an enum than the kernel to look.
# The kernel accepts sockets that block, whatever the listener does.
PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_LOWAT: Final = int(socket.SO_RCVLOWAT)
_STREAM: Final = int(socket.SOCK_STREAM)


class Peeked:
    """One connection that belongs to nobody yet. Whoever looks says how (`_look`)."""

    __slots__ = (
        "_family",
        "_inside",
        "_loop",
        "_reading",
        "_seen",
        "_sock",
        "_timers",
        "_until",
        "bucket",
        "deadline",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        inside: "set[Peeked]",
        stream: Stream,
    ) -> None:
        """`inside`: where it is listed as long as it is here."""
        self._loop = loop
        self._timers = timers
        self._inside = inside
        self._family = stream.family
        # All three said, so that none is asked of the kernel.
        self._sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        stream.detach()
        self._seen = 0
        """Looked at, and left where it is."""
        self._reading = False
        self._until = NEVER
        self.deadline = NEVER
        self.bucket = NEVER

    def begin(self, seconds: float) -> None:
        """Look at once: most often what is looked for has come with the connection."""
        self._inside.add(self)
        self._timers.arm_in(self, seconds)
        self._until = self.deadline
        self._look()

    def hurry(self, seconds: float) -> None:
        """No more time than this."""
        self._until = min(self._until, self._timers.now + seconds)
        self._timers.arm(self, self._until)

    def expired(self, now: float) -> None:
        """The time is over, or it is time for another look."""
        if now >= self._until:
            self._too_late()
        else:
            self._look()

    def _look(self) -> None:
        raise NotImplementedError

    def _too_late(self) -> None:
        raise NotImplementedError

    def _await(self) -> None:
        """Look again when there is something to read."""
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock, self._look)

    def _await_beyond(self, seen: int, lacking: int) -> None:
        """Look again when there is more than has been seen."""
        timers = self._timers
        if seen > self._seen:
            self._seen = seen
            self._sock.setsockopt(_SOCKET, _LOWAT, seen + lacking)
            self._await()
            timers.arm(self, self._until)
        else:
            self._pause()
            timers.arm(self, min(timers.now, self._until))

    def _is_all(self, seen: int) -> bool:
        """Is there nothing that was not seen before, and will nothing come any more? What is
        only looked at hides the end behind it."""
        if seen > self._seen:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        # Once more: the last of it may have come with the end.
        return bool(poll.poll(0)) and len(self._sock.recv(seen + 1, PEEK)) <= seen

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _release(self) -> Stream:
        """As if nobody had looked: it is somebody else's from now on."""
        if self._seen:
            self._sock.setsockopt(_SOCKET, _LOWAT, 1)
        self._leave()
        return Stream(self._sock.detach(), self._family)

    def _close(self) -> None:
        self._leave()
        self._sock.close()

    def _leave(self) -> None:
        self._pause()
        self._timers.disarm(self)
        self._inside.discard(self)
