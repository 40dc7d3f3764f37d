"""A server that an upstream stands for, as a member of the proxies' pools: a plain record.

No I/O, no clock.
"""

from typing import NamedTuple

from penstock_proxy.config import Target
from penstock_proxy.net.address import Address
from penstock_supervisor.names.answers import Endpoint


class UpstreamMember(NamedTuple):
    number: int
    """As a member of the pools; given once in a run."""
    slot: int
    """What metrics know it by. It keeps it as long as it has its address."""
    endpoint: Endpoint
    weight: int
    """Its share: that of the configuration, or of its SRV record."""

    @property
    def address(self) -> Address:
        return self.endpoint.address

    def target(self, *, up: bool) -> Target:
        """What a proxy is told of it. `up`: it may be picked at once."""
        return Target(
            member=self.number,
            slot=self.slot,
            address=str(self.address),
            name=self.endpoint.name,
            weight=self.weight,
            joined=True,
            up=up,
            upstream=True,
        )

    def __str__(self) -> str:
        """For people: the name, where there is one, and the address."""
        name, address = self.endpoint.name, self.address
        return f"{name} ({address})" if name else str(address)
