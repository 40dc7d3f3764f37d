"""A proxy that is away is covered by the others, for as long as it is and no longer.

Proxies that only note what they are told, a loop whose clock is moved by hand, and sockets
that are numbers: who is told what, and when, is all that is decided here.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_proxy.messages import PING
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.proxies import MAX_UNANSWERED, PING_S, Proxies


class Proxy:
    """What is seen of a child."""

    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(slot=slot, role="proxy", service="")
        self.name = f"proxy/{slot}"
        self.state = State.UP
        self.pid = 1
        self.got: list[tuple[Any, ...]] = []

    @property
    def at_rest(self) -> bool:
        return self.state in (State.DOWN, State.GIVEN_UP)

    def send(self, message: dict[str, Any], handle: object = None, _: object = None) -> bool:
        if self.state is State.BACKOFF or self.at_rest:
            return False
        self.got.append(
            tuple(message[key] for key in ("cmd", "service", "proxy") if key in message)
            + ((handle,) if handle else ())
        )
        return True

    def stop(self, _: float | None) -> None:
        self.state = State.DOWN

    def heard(self) -> list[tuple[Any, ...]]:
        """Since it was last asked, without questions whether it is there."""
        heard, self.got = [one for one in self.got if one != (PING,)], []
        return heard


class Timer:
    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def cancel(self) -> None:
        self._loop.todo = None


class Loop:
    todo: Callable[[], None] | None = None

    def call_later(self, delay_s: float, todo: Callable[[], None]) -> Timer:
        assert delay_s == PING_S
        self.todo = todo
        return Timer(self)


class Stage:
    def __init__(self, count: int) -> None:
        self.loop, self.slots = Loop(), Slots()
        self.proxies = [Proxy(slot) for slot in range(count)]
        cast("list[Any]", self.slots.proxies).extend(self.proxies)
        # Of `web` each proxy has a socket of its own, of `local` all have the same.
        resources = SimpleNamespace(
            listeners={
                "web": SimpleNamespace(proxy_socket=lambda slot: f"socket {slot}"),
                "local": SimpleNamespace(proxy_socket=lambda _: None),
            },
            config=SimpleNamespace(services=()),
            proxy_config=lambda *_: SimpleNamespace(services=(), model_dump=lambda mode: {}),
        )
        rotation = SimpleNamespace(
            proxy_exited=lambda _: None,
            proxy_spawned=lambda *_: None,
            is_joined=lambda _: True,
            is_up_anywhere=lambda _: True,
        )
        self.all = Proxies(cast("Any", self.loop), *cast("Any", (resources, self.slots, rotation)))

    def dies(self, slot: int) -> None:
        self.proxies[slot].state = State.BACKOFF
        self.all.exited(cast("Any", self.proxies[slot]))

    def comes(self, slot: int) -> None:
        self.proxies[slot].state = State.STARTING
        self.all.spawned(cast("Any", self.proxies[slot]))
        self.proxies[slot].state = State.UP
        self.all.ready(cast("Any", self.proxies[slot]))

    def answers(self, slot: int) -> None:
        self.all.answered(cast("Any", self.proxies[slot]))

    def asks(self) -> None:
        """A second passes."""
        assert self.loop.todo is not None
        self.loop.todo()

    def heard(self) -> list[list[tuple[Any, ...]]]:
        return [proxy.heard() for proxy in self.proxies]


@pytest.fixture
def three() -> Stage:
    stage = Stage(3)
    stage.all.accept()
    assert stage.heard() == [[("accept",)]] * 3
    return stage


COVER_1 = ("cover", "web", 1, "socket 1")


def test_the_others_accept_for_one_that_died_until_it_is_back(three: Stage) -> None:
    three.dies(1)
    assert three.heard() == [[COVER_1], [], [COVER_1]]
    three.comes(1)
    assert three.heard() == [
        [("uncover", 1)],
        [("configure",), ("accept",), ("uncover", 1)],
        [("uncover", 1)],
    ]


def test_one_that_comes_covers_those_that_are_still_away(three: Stage) -> None:
    three.dies(1)
    three.dies(2)
    three.heard()
    three.comes(2)
    assert three.proxies[2].heard() == [("configure",), ("accept",), COVER_1, ("uncover", 2)]


def test_nobody_covers_before_the_sockets_listen_and_after_the_end() -> None:
    early = Stage(2)
    early.dies(1)
    early.comes(1)
    assert ("cover", "web", 1, "socket 1") not in early.proxies[0].heard()
    early.all.accept()
    early.all.stop(None)
    early.heard()
    early.all.exited(cast("Any", early.proxies[1]))
    assert early.heard() == [[], []]
    assert early.loop.todo is None, "nobody is asked any more"


def test_one_that_does_not_answer_is_covered_and_uncovered_when_it_does(three: Stage) -> None:
    for _ in range(MAX_UNANSWERED):
        three.asks()
        three.answers(0)
        three.answers(2)
        assert three.heard() == [[], [], []]
    three.asks()
    assert three.heard() == [[COVER_1], [], [COVER_1]]
    three.asks()
    assert three.heard() == [[], [], []], "once"
    assert three.all.can_accept
    three.answers(1)
    assert three.heard() == [[("uncover", 1)]] * 3
    assert three.slots.covered == set()


def test_a_late_answer_is_an_answer(three: Stage) -> None:
    for _ in range(MAX_UNANSWERED * 3):
        three.asks()
        three.asks()
        for slot in range(3):
            three.answers(slot)
    assert three.heard() == [[], [], []]


def test_one_that_is_killed_while_it_is_stuck_is_covered_until_its_successor_is_there(
    three: Stage,
) -> None:
    for _ in range(MAX_UNANSWERED + 1):
        three.asks()
        three.answers(0)
        three.answers(2)
    three.dies(1)
    three.heard()
    three.comes(1)
    assert three.slots.covered == set()
    three.asks()
    assert three.heard()[0] == [("uncover", 1)], "what the one before owed is forgotten"


def test_who_is_given_up_is_covered_and_the_last_one_ends_the_run(three: Stage) -> None:
    for slot, is_last in ((1, False), (0, False), (2, True)):
        three.dies(slot)
        three.proxies[slot].state = State.GIVEN_UP
        assert three.all.gave_up(cast("Any", three.proxies[slot])) is is_last
        assert three.all.can_accept is not is_last
    assert three.all.at_rest


def test_a_single_proxy_is_not_asked_whether_it_is_there() -> None:
    one = Stage(1)
    one.all.accept()
    assert one.loop.todo is None


def test_without_a_proxy_there_is_nothing_to_wait_for() -> None:
    none = Stage(0)
    assert none.all.can_accept
    assert none.all.at_rest
    assert not none.all.tell({"cmd": "reopen"})
