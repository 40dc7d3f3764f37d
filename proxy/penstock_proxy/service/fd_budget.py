"""The budget of file descriptors: may one more connection be accepted?

Owns: the count of a proxy's descriptors. A proxied connection needs two, one that is passed to
a worker needs one. A proxy that runs out of them can neither serve nor refuse its clients, so
they are counted before a connection is accepted (the idea is relayd's). No I/O: each owner of
descriptors updates the counts here when it opens and closes them.
"""

from typing import Final

RESERVE: Final = 48
"""Descriptors for health checks, log files, the channel, the runtime's own, and clients that are
accepted only to be refused."""


class FdBudget:
    """The budget of one process. All counts are descriptors."""

    __slots__ = (
        "clients",
        "in_flight",
        "limit",
        "listeners",
        "other",
        "pending",
        "pipes",
        "upstreams",
    )

    def __init__(self, limit: int, listeners: int, other: int) -> None:
        """`limit`: RLIMIT_NOFILE; `other`: open descriptors of no other kind."""
        self.limit = limit
        """Updated at each tick: prlimit(2) can change it from outside."""
        self.listeners = listeners
        self.other = other
        self.clients = 0
        """Client connections that the proxy serves: each has or may need a second descriptor."""
        self.upstreams = 0
        """Connections to workers."""
        self.pending = 0
        """Client connections that will be passed to a worker: they need no second one."""
        self.pipes = 0
        """Both ends of pipes between connections (`net/pipes`). None is opened unless there is much
        more room than it takes."""
        self.in_flight = 0
        """Passed to a worker that has not accepted them yet. They are not open here, but each
        may come back, and the kernel drops a descriptor, and with it the client, if the process
        has no number free for it."""

    @property
    def open(self) -> int:
        """Open descriptors, by these counts."""
        connections = self.clients + self.upstreams + self.pending
        return self.listeners + self.other + self.pipes + connections

    def room(self) -> int:
        """How many more connections can have two descriptors each. Below 1: none.

        Each client that is connected already may still need its second one.
        """
        committed = self.listeners + self.other + self.pipes + self.pending + self.in_flight
        committed += self.clients + max(self.clients, self.upstreams)
        return (self.limit - RESERVE - committed) // 2

    @property
    def capacity(self) -> int:
        """How many client connections this process can have at most, with two descriptors each."""
        return max(0, self.limit - self.listeners - self.other - RESERVE) // 2

    def check(self) -> None:
        """Raises OSError if the limit is too low to accept even one connection."""
        needed = self.listeners + self.other + RESERVE + 2
        if needed > self.limit:
            raise OSError(f"at least {needed} descriptors are needed, and {self.limit} allowed")

    def by_kind(self) -> dict[str, int]:
        """The values of the metric `penstock_fds`."""
        return {
            "listener": self.listeners,
            "client": self.clients + self.pending,
            "upstream": self.upstreams,
            "pipe": self.pipes,
            "other": self.other,
        }
