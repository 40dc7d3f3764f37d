"""What a service does to a client's connection, whatever that does just now.

Owns: the end of a connection for others (a client that waits for a place, a stop, a changed
configuration, the end of the time to finish), and since when it has been idle. Must not know: how
requests are read (`client_connection`), how a connection is closed (`client_closing`, its base),
or who decides (`runtime.service`, `listener.overload`).

A request that has begun is never ended for others: only when its time is over.
"""

from typing import Any, Final

from penstock_proxy.config import Timeouts
from penstock_proxy.errors import STOP_TIMEOUT, Fault
from penstock_proxy.http.client_closing import ClosingClient
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.net.timer_wheel import NEVER, TICK_S
from penstock_proxy.net.unread_input import has_unread

STOPPING_HEAD_S: Final = 1.0
"""When the process stops, a client that has sent nothing yet gets this long for its request."""


class ControlledClient(ClosingClient):
    """A client's connection, as its service sees it."""

    __slots__ = ("_head_timer_runs", "_requests_left", "exchange")

    exchange: Exchange | None
    """The request that is served now."""

    def __init__(
        self, service: HttpContext, peer: Any, fields: bytes, port: int, *, may_be_trusted: bool
    ) -> None:
        super().__init__(service, peer, fields, port, may_be_trusted=may_be_trusted)
        self.exchange = None
        self._head_timer_runs = True
        """The deadline is the time-out of a head. False: it is keep-alive's or the exchange's."""
        self._requests_left = service.config.limits.requests or -1
        """Requests that the client may still send; below zero: no limit."""

    def retire(self) -> None:
        """What it was accepted with holds no more: close it when it is idle, and let it serve at
        most the request that it has, or the next one."""
        if self.exchange is not None:
            self.exchange.be_the_last()
        elif self._discards:
            if not self._closing:
                self._end(linger=True)
        elif self.is_kept_alive and not has_unread(self.transport.borrow()):
            self._end(linger=False)
        if self._requests_left:
            self._requests_left = 1

    def timeouts_changed(self, before: Timeouts) -> None:
        """The service's time-outs were these: what the client waits for has the new ones."""
        if self.exchange is not None:
            self.exchange.timeouts_changed(before)
        elif not (self._discards or self.blocked):
            now, timers = self.service.timeouts, self.service.timers
            of_head = self._head_timer_runs
            seconds = now.head if of_head else now.keepalive
            # What has begun to wait since then has the new time already.
            last = timers.now + TICK_S + seconds
            first = self.service.timeouts_since + TICK_S + seconds
            if not first <= self.deadline <= last:
                before_s = before.head if of_head else before.keepalive
                timers.arm(self, self.deadline + seconds - before_s)

    @property
    def idle_since(self) -> float:
        """Since when it has had no complete request; NEVER while it has one, or while the client
        still takes its answer. One that has it and still sends is idle."""
        if self._discarding is not None:
            return self._discarding.since
        if self.exchange is not None or self._closing or self.blocked:
            return NEVER
        timeouts = self.service.timeouts
        if self._head_timer_runs:
            return self.deadline - timeouts.head
        since = self.deadline - timeouts.keepalive
        # The end of its answer has `timeouts.body`, as everywhere.
        return since + timeouts.body if self.transport.get_write_buffer_size() else since

    @property
    def is_kept_alive(self) -> bool:
        """It is between two requests. False: its request has not come, or only in part."""
        return not self._head_timer_runs

    def end_idle(self, fault: Fault) -> bool:
        """Close it, because another client needs its place. False: its request has just come."""
        if self._discarding is not None:
            self._stop_serving()
            self.transport.abort()
            return True
        if has_unread(self.transport.borrow()):
            return False
        if self.buffer:
            self.send_error(fault, None, keep_alive=False)
        self._end(linger=False)
        return True

    def stop(self) -> None:
        """Serve no new requests: close an idle connection, let others finish."""
        if self._closing:
            self._hurry()
        elif self.exchange is not None:
            return
        elif not self._head_timer_runs:
            self._end(linger=self._discards)
        else:
            self.service.timers.arm_in(self, STOPPING_HEAD_S)

    def cut(self) -> bool:
        """The time to finish is over: end what is open, and let the client see that it was cut."""
        exchange = self.exchange
        if exchange is not None:
            if exchange.status == 101:
                return False
            exchange.fail(STOP_TIMEOUT, "its time to finish was over")
        unsent = self.transport.get_write_buffer_size() > 0
        if unsent:
            # It does not read. A response that we have whole and it has not is cut as well.
            self._reset()
            if exchange is None:
                self.service.counters.errors[STOP_TIMEOUT.kind] += 1
                self.service.counters.broken_off += 1
        elif exchange is None:
            self.stop()
        return unsent or exchange is not None
