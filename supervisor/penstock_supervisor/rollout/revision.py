"""A configuration in force, together with what it was resolved to when it was read.

What a name stands for may change while a run lasts: a host name gets another address, a link leads
to another directory. A revision keeps what was found, so that a worker that ends is started again
as it was, and that a roll-out that is aborted goes back to exactly what was there before.

The members of a service's upstreams are in it as they were found then. What they are now is in
`upstream_members`: names are looked up again. No I/O, no clock.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.names.upstream_member import UpstreamMember

Upstreams = Mapping[str, Mapping[str, tuple[UpstreamMember, ...]]]
"""The members by service and by upstream, as the configuration has its address."""


class Revision(NamedTuple):
    number: int
    config: Config
    upstreams: Upstreams
    directories: Mapping[str, str]
    """Where the program of each service is started, without links."""
    addresses: Mapping[str, Address] = MappingProxyType({})
    """Where the clients of each service connect."""

    @property
    def services(self) -> dict[str, Service]:
        return {service.name: service for service in self.config.services}
