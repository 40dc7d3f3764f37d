"""A configuration in force, together with what it was resolved to when it was read.

What a name stands for may change while a run lasts: a host name gets another address, a link leads
to another directory. A revision keeps what was found, so that a worker that ends is started again
as it was, and that a roll-out that is aborted goes back to exactly what was there before.

Owns the numbers of upstreams as members of the proxies' pools: an address keeps its number when
others are added before it or removed. No I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import NamedTuple

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Config, Service


class UpstreamMember(NamedTuple):
    """One upstream of a service."""

    number: int
    """As a member of the pools."""
    address: Address
    """With its name resolved."""


class Revision(NamedTuple):
    number: int
    config: Config
    upstreams: Mapping[str, tuple[UpstreamMember, ...]]
    """By service, in the order of the configuration."""
    directories: Mapping[str, str]
    """Where the program of each service is started, without links."""
    addresses: Mapping[str, Address] = MappingProxyType({})
    """Where the clients of each service connect."""
    upstreams_numbered: int = 0
    """More than any number that an upstream has, or had in an earlier revision."""

    @property
    def services(self) -> dict[str, Service]:
        return {service.name: service for service in self.config.services}


def number_upstreams(
    services: Sequence[Service],
    resolved: Mapping[str, Sequence[Address]],
    before: Revision | None = None,
) -> dict[str, tuple[UpstreamMember, ...]]:
    """Number the upstreams of all services. One that was there `before` keeps its number, and no
    other gets a number that was ever given: the one that had it may still drain."""
    numbered = {}
    for service in services:
        if not service.upstreams:
            continue
        known = {} if before is None else _numbers(before, service.name)
        fresh = count(0 if before is None else before.upstreams_numbered)
        numbered[service.name] = tuple(
            UpstreamMember(
                known[upstream.address] if upstream.address in known else next(fresh), address
            )
            for upstream, address in zip(service.upstreams, resolved[service.name], strict=True)
        )
    return numbered


def numbers_given(
    upstreams: Mapping[str, Sequence[UpstreamMember]], before: Revision | None = None
) -> int:
    """More than any number of an upstream so far."""
    numbers = [member.number for members in upstreams.values() for member in members]
    return max([*(number + 1 for number in numbers), before.upstreams_numbered if before else 0])


def _numbers(revision: Revision, name: str) -> dict[str, int]:
    """The number of each configured address of a service."""
    service = revision.services.get(name)
    if service is None or not service.upstreams:
        return {}
    return {
        upstream.address: member.number
        for upstream, member in zip(service.upstreams, revision.upstreams[name], strict=True)
    }
