"""The socket of a slot is closed when nobody in it is well, and each process gets it back that lost
it: the worker, and the one that is to take its place.

Listeners are fakes that record; workers are plain values.
"""

from types import SimpleNamespace
from typing import Any, cast

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.errors import StartError
from penstock_supervisor.rotation.reuseport import ReuseportSockets
from penstock_worker import contract


class Worker:
    def __init__(self, number: int, slot: int = 0, *, is_app: bool = True) -> None:
        self.plan = SimpleNamespace(service="web", slot=slot, runs_our_code=is_app)
        self.name, self.number, self.pid = f"web/{slot}", number, 100 + number
        self.state = State.UP
        self.sockets: list[Any] = []

    def send(self, message: dict[str, Any], handle: object) -> bool:
        assert message["cmd"] == contract.LISTEN
        self.sockets.append(handle)
        return True


class Harness:
    """Also the listeners of the service `web`."""

    def __init__(self, *, is_app: bool = True) -> None:
        self.slots = Slots()
        self.old, self.other = Worker(1, is_app=is_app), Worker(2, 1)
        for worker in (self.old, self.other):
            self.slots.add(cast("Any", worker))
        self.dropped = 0
        self.closed: list[int] = []
        self.full = False
        self.lost: list[str] = []
        self.sockets = ReuseportSockets(
            cast("Any", {"web": self}), self.slots, lambda _, why: self.lost.append(why)
        )

    def close_slot(self, slot: int) -> bool:
        self.closed.append(slot)
        return True

    def open_slot(self, slot: int) -> str:
        if self.full:
            raise StartError("no descriptor")
        return f"socket {slot}"

    def add_successor(self) -> Worker:
        successor = Worker(7)
        self.slots.add_successor(cast("Any", successor))
        return successor

    def changed(self, worker: Worker, state: str) -> None:
        self.sockets.worker_changed(cast("Any", worker), state)


def test_a_worker_that_is_down_loses_its_socket_and_gets_one_when_it_is_up() -> None:
    harness = Harness()
    harness.changed(harness.old, "down")
    assert harness.closed == [0]
    harness.changed(harness.old, "up")
    assert harness.old.sockets == ["socket 0"]
    harness.changed(harness.old, "up")
    assert harness.old.sockets == ["socket 0"], "once"
    assert harness.other.sockets == []


def test_a_successor_that_is_down_does_not_take_the_socket_from_the_worker() -> None:
    harness = Harness()
    successor = harness.add_successor()
    harness.changed(harness.old, "up")
    harness.changed(successor, "down")
    assert harness.closed == []
    harness.changed(harness.old, "down")
    assert harness.closed == [0], "nobody in the slot is well"
    for worker in (harness.old, successor):
        harness.changed(worker, "up")
        assert worker.sockets == ["socket 0"]


def test_a_worker_that_is_down_leaves_the_socket_to_a_successor_that_is_well() -> None:
    harness = Harness()
    harness.add_successor()
    harness.changed(harness.old, "down")
    assert harness.closed == []


def test_a_worker_whose_socket_was_closed_before_its_successor_came_gets_the_new_one() -> None:
    harness = Harness()
    harness.changed(harness.old, "down")
    harness.add_successor()
    harness.changed(harness.old, "up")
    assert harness.old.sockets == ["socket 0"]


def test_what_is_started_again_has_inherited_a_socket() -> None:
    harness = Harness()
    harness.changed(harness.old, "down")
    harness.sockets.exited(cast("Any", harness.old))
    harness.old.pid = 300
    harness.changed(harness.old, "up")
    assert harness.old.sockets == []


def test_one_in_a_crash_loop_is_deserted_as_soon_as_somebody_else_serves() -> None:
    harness = Harness()
    harness.old.state = State.CRASH_LOOP
    harness.changed(harness.other, "up")
    assert harness.closed == [0]
    successor = harness.add_successor()
    successor.state = State.STARTING
    harness.changed(harness.other, "up")
    assert harness.closed == [0], "its successor has one, and will accept"


def test_who_cannot_be_given_a_socket_has_to_be_replaced() -> None:
    program = Harness(is_app=False)
    program.changed(program.old, "down")
    program.changed(program.old, "up")
    assert program.lost == [
        "web/0: its socket was closed while it did not answer, and it cannot be given another"
    ]
    full = Harness()
    full.changed(full.old, "down")
    full.full = True
    full.changed(full.old, "up")
    assert full.lost == ["web/0: no descriptor"]


def test_an_upstream_and_a_service_that_is_gone_have_no_socket() -> None:
    harness = Harness()
    harness.sockets.worker_changed(None, "down")
    harness.old.plan.service = "gone"
    harness.changed(harness.old, "down")
    assert harness.closed == []
