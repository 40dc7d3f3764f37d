"""What an overloaded service says in the log: at once, and then sums now and then.

Owns: the words, and how often. An overload may last for hours, with hundreds of clients a second;
a line for each would fill a disk. The metrics count them all. Must not know: what is done about
an overload. The clock is an argument.
"""

import logging
from typing import Final

from penstock_proxy.errors import NO_DESCRIPTORS, Fault
from penstock_proxy.metrics import EVICTIONS

EVERY_S: Final = 10.0
"""Between two lines of a kind. After as long without an overload the next one is a new one."""
_NEVER: Final = float("-inf")
_log = logging.getLogger("penstock.proxy")


class OverloadLog:
    """The log lines of one service."""

    __slots__ = ("_evicted", "_full_at", "_next", "_refused", "_service", "_told")

    def __init__(self, service: str) -> None:
        self._service = service
        self._full_at = _NEVER
        self._told = False
        """The present overload is in the log."""
        self._next = _NEVER
        self._evicted = dict.fromkeys(EVICTIONS, 0)
        self._refused = 0
        """Both since the last lines."""

    def full(self, fault: Fault, now: float) -> None:
        """A client waits, and there is no room for it."""
        self._full_at = now
        if not self._told:
            self._told = True
            what = "no descriptors are left" if fault is NO_DESCRIPTORS else "it is full"
            _log.warning("%s accepts no more connections: %s", self._service, what)

    def evicted(self, state: str) -> None:
        """A connection in this state, of EVICTIONS, was ended to make room."""
        self._evicted[state] += 1

    def refused(self, count: int) -> None:
        """So many were refused."""
        self._refused += count

    def tick(self, now: float) -> None:
        """Called four times a second: write what is due."""
        if self._told and self._full_at + EVERY_S < now:
            self._told = False
        evicted = self._evicted
        if now < self._next or not (any(evicted.values()) or self._refused):
            return
        self._next = now + EVERY_S
        if any(evicted.values()):
            _log.info(
                "%s: connections ended to make room: %d idle, %d without a request",
                self._service,
                evicted["idle"],
                evicted["no_request"],
            )
        if self._refused:
            _log.warning(
                "%s: refused %d that had waited too long to be accepted",
                self._service,
                self._refused,
            )
        self._refused = 0
        self._evicted = dict.fromkeys(EVICTIONS, 0)
