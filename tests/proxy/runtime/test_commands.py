"""What a message about a worker does, also when the proxy does not know the worker (any more)."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.proxy.conftest import Harness
from tests.support.proxy.one_service import OneService

from penstock_proxy import messages
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import Target
from penstock_proxy.runtime.commands import Commands, carry_out

if TYPE_CHECKING:
    from penstock_proxy.runtime.service import Service

ABOUT_A_MEMBER: dict[str, dict[str, Any]] = {
    messages.REMOVE_MEMBER: {},
    messages.JOIN: {"address": "127.0.0.1:9", "link": 3},
    messages.DRAIN_WORKER: {"seq": 5, "finish": 1.0},
    messages.LEAVE: {},
    messages.HOLD: {"reason": "does not answer"},
    messages.RELEASE: {},
    messages.CONFIRM: {"seq": 6},
}


class Process:
    """A process with one service; it notes what it is asked for and what it answers."""

    def __init__(self, harness: Harness) -> None:
        self.service = harness.service
        self.sent: list[Any] = []
        self.cut: list[tuple[Service, int, float]] = []
        self._target = SimpleNamespace(
            services=OneService(harness.service),
            send=self.sent.append,
            cut_worker=lambda *cut: self.cut.append(cut),
        )

    def told(self, cmd: str, member: int, service: str = "web", **keys: Any) -> None:
        message = {"cmd": cmd, "service": service, "member": member, **keys}
        for _ in carry_out(cast("Any", self._target), message, None) or ():
            pass

    def add(self, member: int, slot: int, weight: int = 1) -> None:
        address = f"127.0.0.1:{member + 1}"
        self.told(messages.ADD_MEMBER, member, slot=slot, weight=weight, address=address)

    def states(self) -> list[tuple[int, int, MemberState]]:
        return [(one.number, one.slot, one.state) for one in self.service.pool.members]


@pytest.fixture
def process(harness: Harness) -> Process:
    return Process(harness)


def test_a_successor_joins_beside_the_old_worker_which_then_leaves(process: Process) -> None:
    process.add(7, slot=0, weight=3)
    assert process.states() == [(0, 0, MemberState.UP), (7, 0, MemberState.ABSENT)]
    assert process.service.pool.member(7).weight == 3
    process.told(messages.JOIN, 7, address="127.0.0.1:12")
    assert process.states()[1] == (7, 0, MemberState.CHECKING)
    assert process.service.addresses[7][1] == ("127.0.0.1", 12)
    member = process.service.pool.member(7)
    process.service.pool.checked(member, ok=True, now=0.0, reason="")
    process.told(messages.DRAIN_WORKER, 0, seq=5, finish=2.0)
    assert process.states() == [(0, 0, MemberState.DRAINING), (7, 0, MemberState.UP)]
    assert process.sent == [{"cmd": messages.WORKER_DRAINED, "seq": 5}]
    assert process.cut == [(process.service, 0, 2.0)]
    process.told(messages.LEAVE, 0)
    process.told(messages.REMOVE_MEMBER, 0)
    assert process.states() == [(7, 0, MemberState.UP)]


def test_a_member_is_held_and_released_without_the_other_of_its_slot(process: Process) -> None:
    process.service.add_member(
        Target(member=7, slot=0, address="127.0.0.1:8", joined=True, up=True)
    )
    process.told(messages.HOLD, 7, reason="does not answer")
    assert process.states() == [(0, 0, MemberState.UP), (7, 0, MemberState.DOWN)]
    process.service.pool.member(7).good_checks = 10
    process.told(messages.RELEASE, 7)
    assert process.states() == [(0, 0, MemberState.UP), (7, 0, MemberState.UP)]


def test_a_member_that_is_there_already_is_not_added_again(process: Process) -> None:
    process.add(0, slot=3)
    assert process.states() == [(0, 0, MemberState.UP)]


def test_a_process_that_joins_held_is_not_picked_before_it_is_released(process: Process) -> None:
    process.add(7, slot=0)
    process.told(messages.JOIN, 7, address="127.0.0.1:12", held="is compared")
    member = process.service.pool.member(7)
    process.service.pool.checked(member, ok=True, now=0.0, reason="")
    assert process.states()[1] == (7, 0, MemberState.CHECKING)
    process.told(messages.RELEASE, 7)
    assert process.states()[1] == (7, 0, MemberState.UP)


@pytest.mark.parametrize("cmd", ABOUT_A_MEMBER)
@pytest.mark.parametrize("when", ["never known", "removed", "service unknown"])
def test_a_message_about_an_unknown_member_is_ignored(
    process: Process, cmd: str, when: str
) -> None:
    process.add(1, slot=0)
    process.told(messages.REMOVE_MEMBER, 1)
    before = process.states()
    member = {"never known": 4, "removed": 1, "service unknown": 0}[when]
    service = "gone" if when == "service unknown" else "web"
    process.told(cmd, member, service, **ABOUT_A_MEMBER[cmd])
    assert process.states() == before
    # The supervisor waits for this one.
    drained = [{"cmd": messages.WORKER_DRAINED, "seq": 5}]
    assert process.sent == (drained if cmd == messages.DRAIN_WORKER else [])
    assert process.cut == []


def test_a_message_about_an_unknown_service_adds_nothing_and_unlinks(process: Process) -> None:
    process.told(messages.ADD_MEMBER, 4, "gone", slot=0, weight=1, address="")
    process.told(messages.UNLINK, 0, "gone", link=8)
    assert process.states() == [(0, 0, MemberState.UP)]
    assert process.sent == [{"cmd": messages.UNLINKED, "link": 8}]


def test_every_message_about_a_member_is_in_the_walk() -> None:
    """The documentation of the messages is the list."""
    text = messages.__doc__ or ""
    documented = {
        line.split()[0].lower()
        for line in text.split("proxy → supervisor")[0].splitlines()
        if "service, member" in line
    }
    assert documented == {*ABOUT_A_MEMBER, messages.ADD_MEMBER, messages.LINK}


def test_a_socket_for_an_unknown_member_is_closed(process: Process) -> None:
    ours, theirs = socket.socketpair()
    message = {"cmd": messages.LINK, "service": "web", "member": 9, "link": 1, "end": "proxy"}
    with theirs:
        carry_out(cast("Any", process._target), message, ours)
        assert ours.fileno() == -1


# The order of messages


class Told:
    """A process that is told what to do; what takes many turns is done a step at a time."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.works: list[Iterator[object]] = []
        self.commands = Commands(cast("Any", self), cast("Any", self))

    def run_soon(self, work: Iterator[object]) -> None:
        self.works.append(work)

    def send(self, message: Any) -> None:
        self.done.append(message["cmd"])

    def step(self) -> bool:
        return next(self.works[0], self) is not self

    def lasting(self, name: str, steps: int) -> Iterator[None]:
        for number in range(steps):
            self.done.append((name, number))
            yield

    def failing(self) -> None:
        raise ValueError("nobody thought of this")


def test_what_takes_many_turns_is_ended_before_the_next_begins_and_a_ping_does_not_wait() -> None:
    told = Told()
    told.commands.put(lambda: told.lasting("first", 3))
    told.commands.put(lambda: told.lasting("second", 1))
    assert told.step()
    told.commands.take({"cmd": messages.PING}, None)
    assert told.done == [("first", 0), messages.PONG]
    while told.step():
        pass
    assert told.done[2:] == [("first", 1), ("first", 2), ("second", 0)]
    assert len(told.works) == 1
    told.commands.put(lambda: told.lasting("third", 1))
    assert len(told.works) == 2


def test_a_command_that_fails_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    told.commands.put(told.failing)
    told.commands.put(lambda: told.lasting("next", 1))
    while told.step():
        pass
    assert told.done == [("next", 0)]
    assert "nobody thought of this" in caplog.text
