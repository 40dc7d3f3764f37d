"""How many connections each client has, and whether one may have more.

Owns the count by address. It is as large as there are connections, however many addresses
a stranger has: who has none is not in it. IPv6 is counted by /64, the smallest network that
anybody is given; a count by single addresses would bound nothing. No I/O.
"""

import socket
from typing import Final

_NETWORK: Final = 8
"""Bytes of an IPv6 address that name the network."""


class ClientLimit:
    """The count of one service. `most` may be changed at any time; 0: no limit."""

    __slots__ = ("_counts", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str | bytes, int] = {}

    def enters(self, address: str) -> bool:
        """Count one more connection of this client; False, and not counted: it has enough."""
        key = _key(address)
        count = self._counts.get(key, 0)
        if 0 < self.most <= count:
            return False
        self._counts[key] = count + 1
        return True

    def leaves(self, address: str) -> None:
        """One that entered has ended."""
        key = _key(address)
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]

    def __len__(self) -> int:
        return len(self._counts)


def _key(address: str) -> str | bytes:
    if ":" not in address:
        return address
    try:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_NETWORK]
    except OSError:
        return address
