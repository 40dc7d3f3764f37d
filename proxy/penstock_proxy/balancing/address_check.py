"""One health check of a worker that its address alone reaches: a connect, or a GET.

Owns: the connection of the check, and how much of the answer is read. Must not know: when a
worker is checked and for how long (`health_check`), and what an answer says (`probes`).

Each check opens a new connection: a connection that is kept alive says little about whether the
worker still accepts. There is neither a task nor a client library in it: a thousand upstreams are
checked five hundred times a second. A GET by callbacks of the loop costs a third of what it did
with aiohttp.

The rest of a good answer is read for a moment, because a server may log a response that nobody
takes.
"""

import os
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final

from penstock_proxy.balancing.probes import BODY_WAIT_S, HEALTHY, Answer, ProbeResult
from penstock_proxy.net.connector import Connecting, SocketAddress, connect
from penstock_worker.net.stream import Stream

_READ_SIZE: Final = 16 << 10

Outcome = ProbeResult | Exception
"""An OSError is a result as well; any other is a bug."""


class AddressCheck:
    """One check."""

    __slots__ = (
        "_answer", "_connecting", "_loop", "_on_decided", "_on_done", "_request", "_rest",
        "_stream",
    )  # fmt: skip

    def __init__(
        self,
        loop: AbstractEventLoop,
        request: bytes,
        on_decided: Callable[["AddressCheck"], None],
        on_done: Callable[["AddressCheck", Outcome], None],
    ) -> None:
        """`request`: empty, if a connect is the check. `on_decided`: called when the result is
        known and only the rest of the answer is waited for. `on_done`: called once, maybe from
        `start`, unless it is cancelled."""
        self._loop = loop
        self._request = request
        self._on_decided = on_decided
        self._on_done = on_done
        self._connecting: Connecting | None = None
        self._stream: Stream | None = None
        self._answer = Answer()
        self._rest: TimerHandle | None = None
        """The rest of the answer is waited for."""

    def start(self, address: SocketAddress) -> None:
        """Connect, and go on from there."""
        self._connecting = connect(self._loop, address, self._connected)

    def cancel(self) -> None:
        """Close it. `on_done` is not called any more."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._stream is not None:
            if self._request:
                self._loop.remove_reader(self._stream.fileno())
            self._stream.close()
            self._stream = None

    def _finish(self, outcome: Outcome) -> None:
        self.cancel()
        self._on_done(self, outcome)

    def _connected(self, stream: Stream | None, error: int) -> None:
        self._connecting = None
        if stream is None:
            self._on_done(self, OSError(error, os.strerror(error)))
        elif not self._request:
            stream.close()
            self._on_done(self, HEALTHY)
        else:
            self._stream = stream
            self._loop.add_reader(stream.fileno(), self._readable)
            try:
                # Far smaller than the smallest send buffer.
                os.write(stream.fileno(), self._request)
            except OSError as failure:
                self._finish(failure)

    def _readable(self) -> None:
        assert self._stream is not None
        try:
            data = os.read(self._stream.fileno(), _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(self._answer.result() if self._answer.is_decided else error)
            return
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 — it is judged with all other results
            self._finish(error)

    def _take(self, data: bytes) -> None:
        answer, was_decided = self._answer, self._answer.is_decided
        if (broken := answer.feed(data)) is not None:
            self._finish(broken)
        elif answer.is_decided and (not data or answer.is_enough):
            self._finish(answer.result())
        elif answer.is_decided and not was_decided:
            self._rest = self._loop.call_later(BODY_WAIT_S, self._rest_is_late)
            self._on_decided(self)

    def _rest_is_late(self) -> None:
        self._finish(self._answer.result())
