"""Closes and reopens the sockets of `reuseport` workers as their health changes.

The kernel distributes connections over all open sockets of the port. A worker that fails its
checks, or that is in a crash loop, must not get a share: its socket is closed, and the
connections that waited on it are counted. When the worker passes its checks again, it gets a new
socket over its channel. When it is started again, it inherits one.
"""

import logging
from collections.abc import Mapping

from penstock_supervisor.children.lifecycle import State
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
        """A worker came into the rotation or left it."""
        if state == "down":
            self.shut(slot)
        elif state == "up" and (sock := self._listeners[slot[0]].reopen_slot(slot[1])) is not None:
            self._slots.current[slot].send({"cmd": contract.LISTEN}, sock)
        if state == "up":
            self._shut_deserted(slot[0])

    def _shut_deserted(self, service: str) -> None:
        """Close the sockets of workers that nobody starts now. One of these stays open as long as
        no other is, so that clients wait for whoever comes first."""
        for slot, child in self._slots.current.items():
            if slot[0] == service and child.state in (State.CRASH_LOOP, State.GIVEN_UP):
                self.shut(slot)

    def shut(self, slot: Slot) -> None:
        """Close the slot's socket: no worker accepts from it."""
        listeners = self._listeners[slot[0]]
        dropped_before = listeners.dropped
        if listeners.close_slot(slot[1]):
            dropped = listeners.dropped - dropped_before
            _log.warning("%s/%d: its socket is closed; %d waited on it", *slot, dropped)
