"""Closes and reopens the sockets of `reuseport` workers as their health changes.

The kernel distributes connections over all open sockets of the port. A worker that fails its
checks, that hangs, or that is in a crash loop, must not get a share: its socket is closed, and the
connections that waited on it are counted. When the worker passes its checks again, it gets a new
socket over its channel: the one that a successor which failed was started with, if there is one.
A `command` cannot take one, and is replaced. What is started again inherits one.
"""

import logging
from collections.abc import Callable, Mapping

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_worker import contract

_log = logging.getLogger("penstock.supervisor")


class ReuseportSockets:
    """`listeners` are by service; those that are not `reuseport` are left alone."""

    def __init__(
        self,
        listeners: Mapping[str, ServiceListeners],
        slots: Slots,
        on_lost_socket: Callable[[Child, str], None],
    ) -> None:
        """`on_lost_socket(child, why)`: only another process in its place can get a socket."""
        self._listeners = listeners
        self._slots = slots
        self._on_lost_socket = on_lost_socket
        self._without_socket: dict[Slot, int | None] = {}
        """The process in each slot whose socket was closed."""

    def worker_changed(self, slot: Slot, state: str) -> None:
        """A worker came into the rotation or left it."""
        if state == "down":
            self.shut(slot)
        elif state == "up" and slot in self._without_socket:
            self._give_socket(slot)
        if state == "up":
            self._shut_deserted(slot[0])

    def _shut_deserted(self, service: str) -> None:
        """Close the sockets of workers that nobody starts now. One of these stays open as long as
        no other is, so that clients wait for whoever comes first."""
        for slot, child in self._slots.current.items():
            if slot[0] == service and child.state in (State.CRASH_LOOP, State.GIVEN_UP):
                self.shut(slot)

    def _give_socket(self, slot: Slot) -> None:
        """Give the worker a new socket instead of the one that was closed."""
        current = self._slots.current[slot]
        if self._without_socket.pop(slot) != current.pid:
            # This process was started since, and has inherited one.
            return
        why = "its socket was closed while it did not answer, and it cannot be given another"
        try:
            sock = self._listeners[slot[0]].open_slot(slot[1])
        except StartError as error:
            why = str(error)
        else:
            if current.plan.runs_our_code and current.send({"cmd": contract.LISTEN}, sock):
                return
        self._on_lost_socket(current, f"{current.name}: {why}")

    def shut(self, slot: Slot) -> None:
        """Close the slot's socket: no worker accepts from it."""
        listeners = self._listeners[slot[0]]
        dropped_before = listeners.dropped
        if listeners.close_slot(slot[1]):
            current = self._slots.current.get(slot)
            self._without_socket[slot] = None if current is None else current.pid
            dropped = listeners.dropped - dropped_before
            _log.warning("%s/%d: its socket is closed; %d waited on it", *slot, dropped)
