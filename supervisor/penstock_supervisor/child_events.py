"""Passes reports of children on to the parts of the run that they concern.

It keeps no state of its own: slots, rotation, proxies and statistics do. It also decides whether
a failure ends the run. That is so as long as no worker of the service was ever ready, because
then somebody has just started the run and waits for the result. Later it is so only if nothing
is left that could ever serve again: without a retry of crash loops somebody else has to act, and
acts on an exit status. How a run ends is known elsewhere (`fail`).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from penstock_proxy.messages import RECONFIGURED, STATS_PART
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.diagnosis import wrong_address
from penstock_supervisor.children.events import EventName, Events
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.observer import ChildObserver
from penstock_supervisor.children.slots import Slots, member_key, slot_of
from penstock_supervisor.config.model import Service
from penstock_supervisor.observability.stats_poll import StatsPoll
from penstock_supervisor.process.reaper import reap_orphans
from penstock_supervisor.process.spawn import SpawnError
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.worker_watch import WorkerWatch
from penstock_supervisor.rotation.reuseport import ReuseportSockets
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_supervisor.snapshot import Part
from penstock_worker import contract

_MAX_REASON: Final = 1024
"""Characters of a worker's reason that an event has."""
if TYPE_CHECKING:
    from asyncio import Task

    from penstock_supervisor.rollout.replacement_queue import Reason

_log = logging.getLogger("penstock.supervisor")


class ChildEvents(ChildObserver[Child]):
    """`fail` ends the run with a reason, and returns False if it was stopped before. `is_over`:
    the run was stopped, or has failed."""

    def __init__(
        self,
        *,
        resources: Resources,
        slots: Slots,
        rotation: Rotation,
        proxies: Proxies,
        worker_checks: WorkerChecks,
        reuseport: ReuseportSockets,
        replacements: Replacements,
        worker_watch: WorkerWatch,
        stats_poll: StatsPoll,
        events: Events,
        condition: Condition,
        on_cut: Callable[[Child, object], None],
        fail: Callable[[str], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._resources = resources
        self._slots = slots
        self._rotation = rotation
        self._proxies = proxies
        self._worker_checks = worker_checks
        self._reuseport = reuseport
        self._replacements = replacements
        self._worker_watch = worker_watch
        self._stats_poll = stats_poll
        self._events = events
        self._condition = condition
        self._reports: dict[str, Callable[[Child, Any], None]] = {
            contract.CUT: lambda child, message: on_cut(child, message.get("count")),
            contract.STATS: stats_poll.answered,
            contract.UNCAUGHT: self._uncaught,
            contract.PONG: self._pong,
        }
        """By the command: what our own processes report."""
        self._fail = fail
        self._is_over = is_over

    def look_for_directory(self, child: Child) -> "Task[None] | None":
        path, origin = child.plan.directory, child.plan.origin
        if path is None or origin is None:
            return None
        return asyncio.get_running_loop().create_task(self._look(child, path, origin.service))

    async def _look(self, child: Child, path: str, service: Service) -> None:
        found = await self._resources.directories.look_for(path, service)
        if found != path:
            text = "%s: %s, where it was started, is gone; it is started in %s"
            _log.warning(text, child.name, path, found)
            child.plan = replace(child.plan, directory=found)

    def sockets_for(self, child: Child) -> tuple[int, ...]:
        if child.plan.role == "proxy":
            return ()
        self._prepare_start(child)
        return self._resources.worker_fds(child.plan)

    def _prepare_start(self, child: Child) -> None:
        """Its port may be somebody else's meanwhile."""
        addresses = (one.plan.address for one in self._slots.workers())
        taken = {address.port for address in addresses if address is not None}
        try:
            child.plan = self._resources.before_start(child.plan, taken)
        except SpawnError:
            # Perhaps what the last worker left has it. It had time to finish, but now others wait.
            child.left_behind.kill()
            raise

    def spawned(self, child: Child) -> None:
        if child.plan.role == "proxy":
            self._proxies.spawned(child)
        else:
            self._rotation.worker_spawned(child)

    def part_of(self, child: Child) -> Part:
        return self._slots.part_of(child)

    def exited(self, child: Child) -> None:
        self._stats_poll.carry_over(child)
        if child.plan.role == "proxy":
            self._proxies.exited(child)
            return
        # First, so that it is not picked again for connections that it had not received.
        self.left(child)
        self._rotation.worker_exited(child)
        self._reuseport.exited(child)

    def joined(self, child: Child) -> None:
        if child.plan.role == "proxy":
            self._proxies.ready(child)
        else:
            self._rotation.join(child)

    def left(self, child: Child) -> None:
        if child.plan.role == "worker":
            self._rotation.leave(child)

    def message_received(self, child: Child, message: Any, handle: socket.socket | None) -> None:
        if self._is_program_message(child, message):
            # The subscriber that takes the event closes the handle.
            self.event(child, "message", message=message, handle=handle)
        elif handle is not None:
            handle.close()

    def _is_program_message(self, child: Child, message: Any) -> bool:
        """True if it is for the user's program. A message of our protocol is handled here."""
        command = message.get("cmd") if isinstance(message, dict) else None
        if isinstance(command, str) and command in self._reports:
            self._reports[command](child, message)
        elif child.plan.role == "proxy":
            self._proxy_says(child, command, message)
        elif isinstance(command, str) and command.startswith("NODE_"):
            _log.warning("%s says %.80r, which is not understood", child.name, command)
        else:
            return True
        return False

    def _proxy_says(self, proxy: Child, command: object, message: Any) -> None:
        if command == RECONFIGURED:
            self._proxies.updates.answered(proxy, message)
        elif command == STATS_PART:
            self._stats_poll.part_came(proxy, message)
        elif not (isinstance(command, str) and self._rotation.handle_message(proxy, message)):
            _log.warning("%s says %.80r, which is not understood", proxy.name, message)

    def _uncaught(self, child: Child, message: Any) -> None:
        # The worker has logged it, and counts it.
        self.event(child, "error", text=str(message.get("reason", ""))[:_MAX_REASON])

    def _pong(self, child: Child, message: Any) -> None:
        if child.plan.role == "proxy":
            self._proxies.answered(child)
        else:
            self._worker_watch.answered(child, message.get("seq"))
            self._worker_checks.answered(member_key(child), message)

    def replacement_needed(self, child: Child, reason: str, why: str) -> None:
        if not self._is_over():
            self._replacements.request(child, cast("Reason", reason), why)

    def start_failed(self, child: Child, why: str) -> bool:
        return not self._was_served(child.plan.service) and self._fail(why)

    def _was_served(self, service: str) -> bool:
        """Nobody waits any more for the result of a start. Of a service that a reload has added,
        whoever drives the roll-out does."""
        return self._resources.is_serving or self._slots.ever_ready(service)

    def gave_up(self, child: Child, why: str) -> bool:
        if child.plan.role == "proxy":
            if why:
                self._proxies.gave_up(child)
            return False
        if self._was_served(child.plan.service):
            # A successor that fails leaves the socket to the process that it was to replace.
            if self._slots.is_current(child):
                self._reuseport.shut(child)
            return False
        # A program that ignores PORT can start once; for the other workers its port is taken.
        # So the first one is the one to report.
        starting = (one for one in self._slots.workers() if one.state is State.STARTING)
        wrong_addresses = filter(None, (wrong_address(one.plan, one.pid) for one in starting))
        return self._fail("; ".join((why, *wrong_addresses)))

    def state_changed(self, child: Child) -> None:
        self._stats_poll.state_changed(child)
        if (heir := self._proxies.forget_ended(child)) is not None:
            self._stats_poll.leave_to(heir, child)
        if child.at_rest and child.plan.role == "worker":
            current = self._slots.current.get(slot_of(child))
            if current is None or current.history is not child.history:
                self._stats_poll.removed_slots.keep(child)
        self._replacements.state_changed(child)
        if os.getpid() == 1 and child.pid is None:
            reap_orphans({one.pid for one in self._slots.children() if one.pid})
        if child.at_rest:
            self._check_that_something_is_left()
        self._condition.notify()

    def _check_that_something_is_left(self) -> None:
        services = self._resources.services.values()
        if not self._is_over() and all(
            self._slots.is_lost(service.name, has_proxy=service.has_proxy) for service in services
        ):
            names = ", ".join(service.name for service in services)
            self._fail(
                f"nothing is left that serves {names}: all ended too often, "
                "and restart.retry_after is 0"
            )

    def event(self, child: Child, name: EventName, **details: Any) -> None:
        plan = child.plan
        self._events.emit(name, plan.role, plan.service, plan.slot, child.pid, **details)
