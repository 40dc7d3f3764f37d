"""Who is in the rotation, and all that is said to those who decide it.

Under `ports` and `handoff` the front decides, under `shared` and `reuseport`, where there is
none, the watch of this process does. Both are told the same things (a process is ready, gone,
about to leave) and both answer with who entered or left; so nobody else need know which of
the two it is. Owns what was answered, the questions that are out ("stop picking"), and the
links of processes that ended while no front was there to take back what they had not taken.
"""

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from penstock_proxy.orders import HELD, HOLD, JOIN, LEAVE, LINK, ROTATION, UNLINK
from penstock_supervisor.child import Child
from penstock_supervisor.lifecycle import State
from penstock_supervisor.links import Link
from penstock_supervisor.roster import Roster, Slot, slot_of
from penstock_supervisor.schemes import has_front
from penstock_supervisor.services import Service
from penstock_supervisor.watch import Watch

_HELD_S: Final = 1.0
"""A front that does not answer is stuck, and a stuck front picks nobody."""

_log = logging.getLogger(__name__)


class Rotation:
    """`changed` is called whenever somebody entered or left."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: tuple[Service, ...],
        roster: Roster,
        watch: Watch,
        changed: Callable[[Slot, str], None],
    ) -> None:
        self._loop = loop
        self._fronted = {service.name for service in services if has_front(service)}
        self._roster = roster
        self._watch = watch
        self._changed = changed
        self._standings: dict[Slot, str] = {}
        self._joined: set[Slot] = set()
        self._held: set[Slot] = set()
        self._numbers = count(1)
        self._holds: dict[int, tuple[TimerHandle, Callable[[], None]]] = {}
        self._orphans: list[tuple[Slot, Link]] = []

    # What is known.

    def is_up(self, slot: Slot) -> bool:
        return self._standings.get(slot) == "up"

    def is_joined(self, slot: Slot) -> bool:
        """Is its process ready, and not about to leave?"""
        holder = self._roster.holders.get(slot)
        return holder is not None and holder.state is State.UP and slot not in self._held

    def serving(self) -> set[str]:
        """The services that have anybody in rotation."""
        return {service for (service, _), state in self._standings.items() if state == "up"}

    # What is said.

    def join(self, child: Child) -> None:
        """The slot's process is ready, wherever it listens."""
        slot = slot_of(child)
        self._held.discard(slot)
        self._joined.add(slot)
        if not self._is_fronted(child):
            self._watch.join(*slot, asks=child.speaks)
            return
        order = {"cmd": JOIN, "service": slot[0], "slot": slot[1]}
        if child.link is not None:
            order["link"] = child.link.number
        elif child.plan.address is not None:
            order["address"] = str(child.plan.address)
        self._tell(order)

    def leave(self, child: Child) -> None:
        """The slot's process is gone, or is told to go."""
        slot = slot_of(child)
        self._standings.pop(slot, None)
        self._held.discard(slot)
        if slot not in self._joined:
            return
        self._joined.discard(slot)
        if self._is_fronted(child):
            self._tell({"cmd": LEAVE, "service": slot[0], "slot": slot[1]})
        else:
            self._watch.leave(*slot)

    def hold(self, child: Child, then: Callable[[], None]) -> None:
        """Nobody may pick it any more; `then` is called when that is so."""
        slot = slot_of(child)
        self._held.add(slot)
        # Who is up next in this slot is said by the front; not that the last one was.
        self._standings.pop(slot, None)
        if not self._is_fronted(child):
            self._watch.hold(*slot)
            self._loop.call_soon(then)
            return
        number = next(self._numbers)
        timer = self._loop.call_later(_HELD_S, self._let_go, number)
        self._holds[number] = timer, then
        order = {"cmd": HOLD, "service": slot[0], "slot": slot[1], "seq": number}
        if not self._tell(order):
            # A front that comes back picks only whom it is told of.
            self._loop.call_soon(self._let_go, number)

    def link(self, child: Child) -> None:
        """A process with a link was started."""
        if child.link is not None:
            self._send_link(slot_of(child), child.link)

    def unlink(self, child: Child) -> None:
        """That process is gone; call it before its link is closed."""
        slot, link = slot_of(child), child.link
        if link is None:
            return
        if self._tell({"cmd": UNLINK, "service": slot[0], "link": link.number}):
            return
        # What it had not taken waits in its end for the next front.
        self._orphans.append((slot, link.copy()))

    def front_spawned(self) -> None:
        """A new front is configured; tell it about the links that are there."""
        for slot, link in self._orphans:
            self._send_link(slot, link)
            self._tell({"cmd": UNLINK, "service": slot[0], "link": link.number})
            link.close()
        self._orphans.clear()
        for child in self._roster.workers():
            self.link(child)
            if (
                child.link is not None
                and self._roster.holds(child)
                and self.is_joined(slot_of(child))
            ):
                self.join(child)

    def front_gone(self) -> None:
        """It picks nobody any more."""
        for number in tuple(self._holds):
            self._let_go(number)

    def close(self) -> None:
        for timer, _ in self._holds.values():
            timer.cancel()
        for _, link in self._orphans:
            link.close()

    # What is heard.

    def heard(self, message: dict[str, Any]) -> bool:
        """A message of the front; False if it is about something else."""
        if message["cmd"] == HELD:
            number = message.get("seq")
            if isinstance(number, int):
                self._let_go(number)
            return True
        if message["cmd"] != ROTATION:
            return False
        service, slot, state = message.get("service"), message.get("slot"), message.get("state")
        if isinstance(service, str) and isinstance(slot, int) and isinstance(state, str):
            self.turned(service, slot, state, str(message.get("reason") or ""))
        return True

    def turned(self, service: str, number: int, state: str, reason: str) -> None:
        """A worker entered or left the rotation."""
        slot = service, number
        holder = self._roster.holders.get(slot)
        if holder is not None and holder.state is not State.UP:
            # On its way before the front heard that the process is gone.
            return
        self._standings[slot] = state
        _log.info("%s/%d is %s%s", service, number, state, f": {reason}" if reason else "")
        self._changed(slot, state)

    def _let_go(self, number: int) -> None:
        timer, then = self._holds.pop(number, (None, None))
        if timer is not None and then is not None:
            timer.cancel()
            then()

    def _is_fronted(self, child: Child) -> bool:
        return child.plan.service in self._fronted

    def _tell(self, order: dict[str, Any]) -> bool:
        front = self._roster.front
        return front is not None and front.send(order)

    def _send_link(self, slot: Slot, link: Link) -> None:
        front = self._roster.front
        if front is None:
            return
        order = {"cmd": LINK, "service": slot[0], "slot": slot[1], "link": link.number}
        front.send({**order, "end": "front"}, link.front)
        front.send({**order, "end": "worker"}, link.worker)
