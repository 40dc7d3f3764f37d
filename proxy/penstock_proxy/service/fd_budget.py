"""May one more connection come in?

Owns: the account of a proxy's descriptors. A relayed connection needs two, one that is
passed to a worker needs one, and a proxy that runs out of them in the middle of its work can
neither serve nor refuse; so they are counted before anything is accepted (the idea is
relayd's). No I/O: who opens and closes says so here.
"""

from typing import Final

RESERVE: Final = 48
"""For health checks, log files, the channel, what the runtime opens on the side, and those
who are told that there is no room for them."""


class FdBudget:
    """The account of one process. All counts are descriptors."""

    __slots__ = ("clients", "in_flight", "limit", "listeners", "other", "pending", "upstreams")

    def __init__(self, limit: int, listeners: int, other: int) -> None:
        """`limit`: RLIMIT_NOFILE; `other`: open ones that are none of the rest."""
        self.limit = limit
        """May be changed from outside, by prlimit(2)."""
        self.listeners = listeners
        self.other = other
        self.clients = 0
        """Of clients that are, or will be, connected to a worker by a second one."""
        self.upstreams = 0
        self.pending = 0
        """Of clients that will be passed to a worker: there is no second one."""
        self.in_flight = 0
        """Passed and not taken yet. Not open here, but each may come back: the kernel would
        drop what comes while there is no number for it, and with it the client."""

    @property
    def open(self) -> int:
        """Descriptors in use, by our own account."""
        return self.listeners + self.other + self.clients + self.upstreams + self.pending

    def room(self) -> int:
        """For how many more connections there are two left, one for the way to a worker.

        Each client already in may still need its second one. Below 1: for none.
        """
        committed = self.listeners + self.other + self.pending + self.in_flight
        committed += self.clients + max(self.clients, self.upstreams)
        return (self.limit - RESERVE - committed) // 2

    @property
    def capacity(self) -> int:
        """How many connections this process can have at most, each with its way to a worker."""
        return max(0, self.limit - self.listeners - self.other - RESERVE) // 2

    def check(self) -> None:
        """Is there room for anybody at all? OSError if not: nobody would ever be accepted."""
        needed = self.listeners + self.other + RESERVE + 2
        if needed > self.limit:
            raise OSError(f"at least {needed} descriptors are needed, and {self.limit} allowed")

    def by_kind(self) -> dict[str, int]:
        """For `penstock_fds`."""
        return {
            "listener": self.listeners,
            "client": self.clients + self.pending,
            "upstream": self.upstreams,
            "other": self.other,
        }
