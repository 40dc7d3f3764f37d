"""Which sockets of a `reuseport` service are open, by how its workers are.

The kernel deals connections out to every open socket of the port. A worker that fails its
checks, or is given up, must not get its share: its socket is shut, and what waited on it is
counted. One that passes them again gets a new socket over its channel; one that is started
again inherits one.
"""

import logging
from collections.abc import Mapping

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_worker import contract

_log = logging.getLogger("penstock.supervisor")


class ReuseportSockets:
    """`listeners` are by service; those that are not `reuseport` are left alone."""

    def __init__(self, listeners: Mapping[str, ServiceListeners], slots: Slots) -> None:
        self._listeners = listeners
        self._slots = slots

    def worker_changed(self, slot: Slot, state: str) -> None:
        """A worker entered or left the rotation."""
        if state == "down":
            self.shut(slot)
        elif state == "up" and (fresh := self._listeners[slot[0]].reopen_slot(slot[1])) is not None:
            self._slots.current[slot].send({"cmd": contract.LISTEN}, fresh)

    def shut(self, slot: Slot) -> None:
        """Nobody serves this slot."""
        listeners = self._listeners[slot[0]]
        before = listeners.dropped
        if listeners.close_slot(slot[1]):
            lost = listeners.dropped - before
            _log.warning("%s/%d: its socket is closed; %d waited on it", *slot, lost)
