"""What children report, and to whom in the run it matters.

Owns nothing but the way of a report: each is handed on to those that keep what follows from it
(slots, rotation, proxies, the questions that are out). A run fails as a whole only before a
service ever worked: then a person stands before it and wants to know. Whether it has is decided
here; what a failure does is the run's (`fail`).
"""

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from penstock_supervisor.children.child import Child, ChildObserver
from penstock_supervisor.children.events import EventName, Events
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.observability.stats_poll import StatsPoll
from penstock_supervisor.process.reaper import reap_strangers
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.rolling_restart import RollingRestart
from penstock_supervisor.rotation.reuseport import ReuseportSockets
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_worker import contract

_log = logging.getLogger("penstock.supervisor")


class ChildEvents(ChildObserver):
    """`fail` ends the run with a reason, and is false if it was stopped already; `is_over`: it
    was stopped, or failed."""

    def __init__(
        self,
        *,
        resources: Resources,
        slots: Slots,
        rotation: Rotation,
        proxies: Proxies,
        worker_checks: WorkerChecks,
        reuseport: ReuseportSockets,
        rolling_restart: RollingRestart,
        stats_poll: StatsPoll,
        events: Events,
        condition: Condition,
        fail: Callable[[str], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self._proxies = proxies
        self._worker_checks = worker_checks
        self._reuseport = reuseport
        self._rolling_restart = rolling_restart
        self._stats_poll = stats_poll
        self._events = events
        self._condition = condition
        self._fail = fail
        self._is_over = is_over

    def sockets_for(self, child: Child) -> tuple[int, ...]:
        if child.plan.role == "proxy":
            return ()
        return self._resources.listeners[child.plan.service].worker_fds(child.plan.slot)

    def spawned(self, child: Child) -> None:
        if child.plan.role == "proxy":
            self._proxies.spawned(child)
        else:
            self._rotation.worker_spawned(child)

    def exited(self, child: Child) -> None:
        self._stats_poll.carry_over(child)
        if child.plan.role == "proxy":
            self._proxies.exited(child)
            return
        # Before what it had not taken is taken back: it must not be picked for that again.
        self.left(child)
        self._rotation.worker_exited(child)

    def joined(self, child: Child) -> None:
        if child.plan.role == "proxy":
            self._proxies.ready(child)
        elif self._slots.is_successor(child):
            self._rolling_restart.successor_ready(child)
        elif self._slots.is_current(child):
            self._rotation.join(child)

    def left(self, child: Child) -> None:
        if self._slots.is_current(child):
            self._rotation.leave(child)

    def heard(self, child: Child, message: Any, handle: socket.socket | None) -> None:
        if self._is_program_s(child, message):
            # It has the handle now, and whoever gets the event closes it.
            self.event(child, "message", message=message, handle=handle)
        elif handle is not None:
            handle.close()

    def _is_program_s(self, child: Child, message: Any) -> bool:
        """False for a message of ours, which is carried out."""
        command = message.get("cmd") if isinstance(message, dict) else None
        if command == contract.STATS:
            self._stats_poll.answered(child, message)
        elif command == contract.PONG and child.plan.role == "proxy":
            self._proxies.answered(child)
        elif command == contract.PONG:
            self._worker_checks.answered(*slot_of(child), message)
        elif child.plan.role == "proxy":
            if not (isinstance(command, str) and self._rotation.handle_message(child, message)):
                _log.warning("%s says %.80r, which is not understood", child.name, message)
        elif isinstance(command, str) and command.startswith("NODE_"):
            _log.warning("%s says %.80r, which is not understood", child.name, command)
        else:
            return True
        return False

    def retiring(self, child: Child, reason: str, why: str) -> None:
        if not self._is_over():
            self._rolling_restart.retire(child, reason, why)

    def start_failed(self, child: Child, why: str) -> bool:
        return not self._slots.ever_ready(child.plan.service) and self._fail(why)

    def gave_up(self, child: Child, why: str) -> bool:
        if child.plan.role == "proxy":
            last = self._proxies.gave_up(child)
            return last and self._fail(f"{why}; without a proxy nobody can be served")
        if self._slots.ever_ready(child.plan.service):
            self._reuseport.shut(slot_of(child))
            return False
        # One that ignores PORT gets away with it once; its sisters find the port taken.
        elsewhere = filter(None, (one.wrong_address() for one in self._slots.workers()))
        return self._fail("; ".join((why, *elsewhere)))

    def state_changed(self, child: Child) -> None:
        self._stats_poll.state_changed(child)
        self._rolling_restart.state_changed(child)
        if os.getpid() == 1 and child.pid is None:
            reap_strangers({one.pid for one in self._slots.children() if one.pid})
        self._condition.notify()

    def event(self, child: Child, name: EventName, **details: Any) -> None:
        plan = child.plan
        self._events.happened(name, plan.role, plan.service, plan.slot, child.pid, **details)
