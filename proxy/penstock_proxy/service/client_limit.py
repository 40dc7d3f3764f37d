"""The limit of connections per client.

Owns: the count by address. It has entries only for clients with connections, so it is never
larger than the number of connections, however many addresses a client uses. IPv6 is counted by
/64, the smallest network that a customer gets: a count by single addresses would limit nothing.
No I/O.
"""

import socket
from typing import Final

_NETWORK: Final = 8
"""Bytes of an IPv6 address that identify the network (/64)."""


class ClientLimit:
    """The count of one service. `max_per_client` can be changed at any time; 0: no limit."""

    __slots__ = ("_counts", "max_per_client")

    def __init__(self, max_per_client: int) -> None:
        self.max_per_client = max_per_client
        self._counts: dict[str | bytes, int] = {}

    def acquire(self, address: str) -> bool:
        """Count one more connection of this client. False: the limit is reached; not counted."""
        key = network_of(address)
        count = self._counts.get(key, 0)
        if 0 < self.max_per_client <= count:
            return False
        self._counts[key] = count + 1
        return True

    def release(self, address: str) -> None:
        """Count one connection less of this client."""
        key = network_of(address)
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]

    def move(self, before: str, after: str) -> None:
        """A connection that was counted for one client counts for another, whatever the limit.
        Empty: for none."""
        if before != after:
            if after:
                key = network_of(after)
                self._counts[key] = self._counts.get(key, 0) + 1
            if before:
                self.release(before)

    def count(self, network: str | bytes) -> int:
        """How many connections this client has; it is named as by `network_of`."""
        return self._counts.get(network, 0)

    def __len__(self) -> int:
        return len(self._counts)


def network_of(address: str) -> str | bytes:
    """What stands for a client: an IPv4 address as it is, of IPv6 the /64."""
    if ":" not in address:
        return address
    try:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_NETWORK]
    except OSError:
        return address
