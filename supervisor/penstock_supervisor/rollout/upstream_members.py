"""The members that the upstreams of all services stand for at this moment.

Owns their numbers and slots. A number is given once in a run: the member that had it may still
drain. A slot is given again, the lowest first, so that there are no more of them than there were
members at a time; a member whose name has got another address leaves its own to its successor.

A reload and a name that is looked up again both change what there is. What a name has become while
a reload was prepared is not taken back by it: an upstream that stays keeps its members of the
moment. No I/O, no clock.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.config.model import Service, Upstream
from penstock_supervisor.config.upstream_address import Kind, parse_upstream
from penstock_supervisor.names.answers import Endpoint
from penstock_supervisor.names.upstream_member import UpstreamMember
from penstock_supervisor.rollout.revision import Upstreams

MAX_NAMED: Final = 1024
"""Members of all names of a run. A proxy is told everything in one message, which has a bound, and
who answers for a name is not trusted with that."""


class Change(NamedTuple):
    """What has become of the members of an upstream."""

    joined: tuple[UpstreamMember, ...]
    left: tuple[UpstreamMember, ...]
    is_any: bool
    """Something has changed, be it a weight."""
    left_out: int
    """Those for which there was no room."""


@dataclass(slots=True)
class _Entry:
    """One upstream of a service."""

    configured: Upstream
    kind: Kind
    members: tuple[UpstreamMember, ...]


class UpstreamMembers:
    """Made once for a run."""

    def __init__(self) -> None:
        self._numbers = count()
        self._entries: dict[str, dict[str, _Entry]] = {}
        """By service, and by address in the configuration."""
        self._by_number: dict[str, dict[int, UpstreamMember]] = {}
        """By service: each message of a proxy is about one of them."""

    # What there is.

    def of(self, service: str) -> tuple[UpstreamMember, ...]:
        """In the order of the configuration."""
        return tuple(self._by_number.get(service, {}).values())

    def is_known(self, service: str, upstream: str) -> bool:
        return upstream in self._entries.get(service, ())

    def endpoints(self, service: str, upstream: str) -> tuple[Endpoint, ...]:
        """What it stands for; empty: nothing, or there is no such upstream."""
        entry = self._entries.get(service, {}).get(upstream)
        return () if entry is None else tuple(one.endpoint for one in entry.members)

    def names(self, services: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Service and upstream of those that are names."""
        for service in services:
            for text, entry in self._entries.get(service, {}).items():
                if entry.kind is not Kind.FIXED:
                    yield service, text

    def label(self, key: MemberKey) -> str:
        """What people call it: its slot, and where it is; empty: it is not there."""
        service, number = key
        if (member := self._by_number.get(service, {}).get(number)) is None:
            return ""
        slot = f"{service}/{member.slot}"
        return f"{slot}, {member}," if member.endpoint.name else slot

    # What changes it.

    def prepare(
        self,
        services: Sequence[Service],
        found: Mapping[str, Mapping[str, tuple[Endpoint, ...]]],
    ) -> Upstreams:
        """The members by another configuration. Nothing is changed by it. `found`: what upstreams
        stand for that are not known."""
        room = _Room(self._room())
        return {
            service.name: self._prepared(service, found.get(service.name, {}), room)
            for service in services
            if service.upstreams
        }

    def _prepared(
        self, service: Service, found: Mapping[str, tuple[Endpoint, ...]], room: "_Room"
    ) -> dict[str, tuple[UpstreamMember, ...]]:
        present = self._entries.get(service.name, {})
        texts = [one.address for one in service.upstreams]
        kept = {text: present[text].members for text in texts if text in present}
        slots = _Slots(member.slot for members in kept.values() for member in members)
        return {
            one.address: kept[one.address]
            if one.address in kept
            else self._new_members(one, found[one.address], slots, room)
            for one in service.upstreams
        }

    def _new_members(
        self, upstream: Upstream, endpoints: Sequence[Endpoint], slots: "_Slots", room: "_Room"
    ) -> tuple[UpstreamMember, ...]:
        kind = parse_upstream(upstream.address).kind
        if kind is not Kind.FIXED:
            endpoints = room.take(endpoints)
        return tuple(
            self._new(one, _weight(upstream, kind, one), slots.take()) for one in endpoints
        )

    def _room(self, but: _Entry | None = None) -> int:
        """For members of names."""
        entries = (entry for of_one in self._entries.values() for entry in of_one.values())
        named = (one for one in entries if one is not but and one.kind is not Kind.FIXED)
        return max(0, MAX_NAMED - sum(len(entry.members) for entry in named))

    def _new(self, endpoint: Endpoint, weight: int, slot: int) -> UpstreamMember:
        return UpstreamMember(next(self._numbers), slot, endpoint, weight)

    def use(self, upstreams: Upstreams, services: Mapping[str, Service]) -> None:
        """From now on there are these. An upstream that was there has what it has become."""
        for name, prepared in upstreams.items():
            self._entries[name] = self._used(services[name], prepared)
            self._number(name)

    def _used(
        self, service: Service, prepared: Mapping[str, tuple[UpstreamMember, ...]]
    ) -> dict[str, _Entry]:
        present = self._entries.get(service.name, {})
        kept = {one.address: present.get(one.address) for one in service.upstreams}
        slots = _Slots(one.slot for entry in kept.values() if entry for one in entry.members)
        entries = {}
        for one in service.upstreams:
            before = kept[one.address]
            # Since it was prepared, a name may have taken the slot of one that is new.
            members = (
                (m._replace(slot=slots.take(m.slot)) for m in prepared[one.address])
                if before is None
                else before.members
            )
            kind = parse_upstream(one.address).kind
            weighed = (m._replace(weight=_weight(one, kind, m.endpoint)) for m in members)
            entries[one.address] = _Entry(one, kind, tuple(weighed))
        return entries

    def change(self, service: str, upstream: str, endpoints: Sequence[Endpoint]) -> Change:
        """A name stands for these from now on, as far as there is room: who stays comes first.
        KeyError: there is no such upstream."""
        entry = self._entries[service][upstream]
        offered, endpoints = len(endpoints), endpoints[: self._room(but=entry)]
        before = {one.address: one for one in entry.members}
        wanted = {one.address for one in endpoints}
        left = tuple(one for one in entry.members if one.address not in wanted)
        slots = _Slots(one.slot for one in self.of(service) if one not in left)
        members = tuple(
            before[one.address]._replace(endpoint=one, weight=weight)
            if one.address in before
            else self._new(one, weight, slots.take())
            for one in endpoints
            for weight in (_weight(entry.configured, entry.kind, one),)
        )
        is_any, entry.members = members != entry.members, members
        self._number(service)
        joined = tuple(one for one in members if one.address not in before)
        return Change(joined, left, is_any, offered - len(endpoints))

    def forget(self, service: str) -> None:
        """Nothing is left of it."""
        self._entries.pop(service, None)
        self._by_number.pop(service, None)

    def _number(self, service: str) -> None:
        members = (one for entry in self._entries[service].values() for one in entry.members)
        self._by_number[service] = {member.number: member for member in members}


class _Room:
    """For members of names, while several services are prepared."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """As many as there is room for."""
        taken = endpoints[: self._left]
        self._left -= len(taken)
        return taken


class _Slots:
    """The slots of a service that are free."""

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = set(taken)
        self._lowest = 0

    def take(self, wanted: int = -1) -> int:
        """That one, or the lowest."""
        slot = wanted
        if wanted < 0 or wanted in self._taken:
            while self._lowest in self._taken:
                self._lowest += 1
            slot = self._lowest
        self._taken.add(slot)
        return slot


def _weight(upstream: Upstream, kind: Kind, endpoint: Endpoint) -> int:
    return endpoint.weight if kind is Kind.SRV else upstream.weight
