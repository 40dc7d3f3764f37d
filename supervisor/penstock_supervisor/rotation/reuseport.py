"""Closes and reopens the sockets of `reuseport` workers as their health changes.

The kernel distributes connections over all open sockets of the port. A worker that fails its
checks, that hangs, or that is in a crash loop, must not get a share: its socket is closed, and the
connections that waited on it are counted. When the worker passes its checks again, it gets a new
socket over its channel: the one that a successor which failed was started with, if there is one.
A `command` cannot take one, and is replaced. What is started again inherits one.

A slot has one socket. A worker and its successor have it together, so it stays open as long as one
of them is well.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots, member_key, slot_of
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_worker import contract

if TYPE_CHECKING:
    from penstock_supervisor.children.plan import MemberKey

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
        self._down: dict[MemberKey, int | None] = {}
        """Processes that are out of the rotation."""
        self._without_socket: dict[MemberKey, int | None] = {}
        """Processes whose slot's socket was closed while they had it."""

    def worker_changed(self, child: Child | None, state: str) -> None:
        """A worker came into the rotation or left it."""
        if child is None or child.plan.service not in self._listeners:
            return
        key = member_key(child)
        if state == "down":
            self._down[key] = child.pid
            self.shut(child)
        elif state == "up":
            self._down.pop(key, None)
            if key in self._without_socket:
                self._give_socket(child)
            self._shut_deserted(child.plan.service)

    def exited(self, child: Child) -> None:
        """Its process ended; the next one inherits a socket."""
        self._down.pop(member_key(child), None)
        self._without_socket.pop(member_key(child), None)

    def _shut_deserted(self, service: str) -> None:
        """Close the sockets of workers that nobody starts now. One of these stays open as long as
        no other is, so that clients wait for whoever comes first."""
        for slot, child in self._slots.current.items():
            if slot[0] == service and child.state in (State.CRASH_LOOP, State.GIVEN_UP):
                self.shut(child)

    def _give_socket(self, child: Child) -> None:
        """Give the worker a new socket instead of the one that was closed."""
        if self._without_socket.pop(member_key(child)) != child.pid:
            # This process was started since, and has inherited one.
            return
        why = "its socket was closed while it did not answer, and it cannot be given another"
        try:
            sock = self._listeners[child.plan.service].open_slot(child.plan.slot)
        except StartError as error:
            why = str(error)
        else:
            if child.plan.runs_our_code and child.send({"cmd": contract.LISTEN}, sock):
                return
        self._on_lost_socket(child, f"{child.name}: {why}")

    def shut(self, child: Child) -> None:
        """Close the socket of the worker's slot: no worker accepts from it. It stays open if there
        is another process in the slot that does."""
        workers = tuple(self._slots.of_slot(slot_of(child)))
        if any(self._accepts(one) for one in workers if one is not child):
            return
        listeners = self._listeners[child.plan.service]
        dropped_before = listeners.dropped
        if listeners.close_slot(child.plan.slot):
            for one in workers:
                if one.pid is not None:
                    self._without_socket[member_key(one)] = one.pid
            dropped = listeners.dropped - dropped_before
            _log.warning("%s: its socket is closed; %d waited on it", child.name, dropped)

    def _accepts(self, child: Child) -> bool:
        """Does it accept, or will it, from the socket that its slot has now?"""
        key = member_key(child)
        is_down = key in self._down and self._down[key] == child.pid
        has_it = self._without_socket.get(key, -1) != child.pid
        will_stay = child.state in (State.STARTING, State.UP) and not self._slots.is_draining(child)
        return will_stay and has_it and not is_down
