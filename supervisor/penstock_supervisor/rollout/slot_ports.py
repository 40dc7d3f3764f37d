"""The ports of each worker's slot, and which of them a worker gets.

Owns the assignment. Under `ports` a slot has two ports, chosen when the slot is made, and its
workers alternate between them: a successor listens on the one that its predecessor does not have.
So both are known before, to people and to firewalls. A slot with one port only is replaced in
place: its worker ends before the next one starts.

Somebody else may have taken a port when a worker is about to listen there. Then, and only then, the
slot gets another one in its place.

Must not know which workers run, nor how a free port is found (`listeners/worker_ports`).
"""

import logging
from collections.abc import Collection, Sequence

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel.listening_processes import describe_holder
from penstock_supervisor.listeners import worker_ports
from penstock_supervisor.listeners.worker_ports import SlotAddresses
from penstock_supervisor.process.spawn import SpawnError

_log = logging.getLogger("penstock.supervisor")

Assignment = dict[str, list[SlotAddresses]]
"""By service, then by slot. Services whose workers have no ports have an empty list."""


class SlotPorts:
    """Made once for a run. StartError: a slot gets no port."""

    def __init__(self, services: Sequence[Service], taken: Collection[int]) -> None:
        """No worker gets a port in `taken`."""
        self._assigned = worker_ports.choose_addresses(services, taken)
        self._known = dict(self._assigned)
        """Also of slots that a service has no more: it may have them again. They are as many as it
        ever had, and gone with the service."""
        self._before: Assignment = {}
        """A roll-out that goes back starts workers again in services that it has removed."""

    def choose(
        self, services: Sequence[Service], taken: Collection[int], earlier: Assignment | None = None
    ) -> Assignment:
        """The ports of these services: slots that there are or were keep theirs, and so do those
        of an `earlier` assignment whose workers are still there. It is not used before `use`.
        StartError."""
        known = {name: list(slots) for name, slots in self._known.items()}
        for name, slots in (earlier or {}).items():
            by_slot = known.setdefault(name, [])
            by_slot += slots[len(by_slot) :]
        return worker_ports.choose_addresses(services, taken, known)

    def use(self, assigned: Assignment) -> Assignment:
        """From now on these are the ports. Returns those before."""
        self._before, self._assigned = self._assigned, assigned
        self._known = {
            name: [*slots, *self._known.get(name, [])[len(slots) :]]
            for name, slots in assigned.items()
        }
        self._forget_given_away()
        return self._before

    def _forget_given_away(self) -> None:
        """What a slot had that is gone, and another one has now."""
        used = self.all
        for name, slots in self._known.items():
            for number in range(len(self._assigned[name]), len(slots)):
                slots[number] = tuple(one for one in slots[number] if one.port not in used)

    @property
    def all(self) -> set[int]:
        slots = (slot for by_slot in self._assigned.values() for slot in by_slot)
        return {address.port for slot in slots for address in slot}

    def _spare(self, service: Service, taken: Collection[int]) -> Address:
        """A port of nobody; if there is none, one of a slot that is gone. StartError."""
        known = (slot for by_slot in self._known.values() for slot in by_slot)
        ports = {address.port for slot in known for address in slot}
        try:
            return worker_ports.spare_address(service, ports | set(taken))
        except StartError:
            return worker_ports.spare_address(service, self.all | set(taken))

    def of(self, service: str, slot: int) -> SlotAddresses:
        """Its own address, then the second one. Empty: its workers have no ports."""
        for assigned in (self._known, self._before):
            by_slot = assigned.get(service, ())
            if slot < len(by_slot):
                return by_slot[slot]
        return ()

    def numbers(self, service: str) -> tuple[tuple[int, ...], ...]:
        """The ports of each slot, its own first."""
        by_slot = self._assigned.get(service, ())
        return tuple(tuple(address.port for address in slot) for slot in by_slot)

    def own(self, service: str) -> tuple[Address, ...]:
        """The first address of each slot."""
        return tuple(slot[0] for slot in self._assigned.get(service, ()))

    def first(self, service: str, slot: int) -> Address | None:
        return next(iter(self.of(service, slot)), None)

    def other(self, service: str, slot: int, than: Address) -> Address | None:
        """Where a worker listens beside the one that is there. None: it cannot."""
        return next((one for one in self.of(service, slot) if one != than), None)

    def exchange(
        self, service: Service, slot: int, lost: Address, taken: Collection[int]
    ) -> Address:
        """Another address in place of one that somebody else has taken. SpawnError: there is
        none."""
        name, holder = f"{service.name}/{slot}", describe_holder(lost.port)
        of_slot = self.of(service.name, slot)
        try:
            address = self._spare(service, taken)
        except StartError as error:
            text = f"port {lost.port} of {name} is taken by {holder}, and {error}"
            raise SpawnError("worker_ports", text, temporary=True) from None
        _log.warning(
            "%s: its port %d is taken by %s; it gets %d", name, lost.port, holder, address.port
        )
        for by_slot in (self._assigned.get(service.name, []), self._known.get(service.name, [])):
            if slot < len(by_slot):
                by_slot[slot] = tuple(address if one == lost else one for one in of_slot)
        self._forget_given_away()
        return address
