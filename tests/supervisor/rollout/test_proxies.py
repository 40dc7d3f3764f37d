"""A proxy that is down or stuck has its listeners taken over by the others until it is ready, and
one that stays stuck is killed, also a single one.

Proxies are fakes that record their messages, the loop is a fake whose timer a test fires, and
sockets are texts. Which proxy gets which message, and when, is all that is decided here.
"""

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_proxy.messages import PING
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import ASK_EVERY_S, ASLEEP_S, DOUBT_S
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.proxies import HUNG_S, Proxies

DOUBTED_AFTER = int(DOUBT_S / ASK_EVERY_S)
"""So many pings in a row without an answer are no doubt yet."""


class Proxy:
    """A fake child that records its messages."""

    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(slot=slot, role="proxy", service="")
        self.name = f"proxy/{slot}"
        self.state = State.UP
        self.pid = 1
        self.signals: list[int] = []
        self._messages: list[tuple[Any, ...]] = []

    def signal(self, number: int) -> None:
        self.signals.append(number)

    @property
    def at_rest(self) -> bool:
        return self.state in (State.DOWN, State.GIVEN_UP)

    def send(self, message: dict[str, Any], handle: object = None, _: object = None) -> bool:
        if self.state is State.BACKOFF or self.at_rest:
            return False
        self._messages.append(
            tuple(message[key] for key in ("cmd", "service", "proxy") if key in message)
            + ((handle,) if handle else ())
        )
        return True

    def stop(self, _: float | None) -> None:
        self.state = State.DOWN

    def received(self) -> list[tuple[Any, ...]]:
        """What it received since the last call, without pings."""
        received, self._messages = [one for one in self._messages if one != (PING,)], []
        return received


class Timer:
    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def cancel(self) -> None:
        self._loop.callback = None


class Loop:
    callback: Callable[[], None] | None = None
    now = 0.0

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        assert delay_s == ASK_EVERY_S
        self.callback = callback
        return Timer(self)


class Harness:
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
        self.group = Proxies(
            cast("Any", self.loop), *cast("Any", (resources, self.slots, rotation))
        )

    def proxy_dies(self, slot: int) -> None:
        self.proxies[slot].state = State.BACKOFF
        self.group.exited(cast("Any", self.proxies[slot]))

    def proxy_starts(self, slot: int) -> None:
        self.proxies[slot].state = State.STARTING
        self.group.spawned(cast("Any", self.proxies[slot]))
        self.proxies[slot].state = State.UP
        self.group.ready(cast("Any", self.proxies[slot]))

    def proxy_answers(self, slot: int) -> None:
        self.group.answered(cast("Any", self.proxies[slot]))

    def ping(self, late_s: float = 0.0) -> None:
        assert self.loop.callback is not None
        self.loop.now += ASK_EVERY_S + late_s
        self.loop.callback()

    def accepts(self) -> bool:
        return self.group.can_accept

    def received(self) -> list[list[tuple[Any, ...]]]:
        return [proxy.received() for proxy in self.proxies]


@pytest.fixture
def three() -> Harness:
    harness = Harness(3)
    harness.group.accept()
    assert harness.received() == [[("accept",)]] * 3
    return harness


COVER_1 = ("cover", "web", 1, "socket 1")


def test_the_others_take_over_the_listener_of_a_dead_proxy_until_it_is_ready(
    three: Harness,
) -> None:
    three.proxy_dies(1)
    assert three.received() == [[COVER_1], [], [COVER_1]]
    three.proxy_starts(1)
    assert three.received() == [
        [("uncover", 1)],
        [("configure",), ("accept",), ("uncover", 1)],
        [("uncover", 1)],
    ]


def test_a_new_proxy_takes_over_the_listeners_of_those_that_are_still_down(three: Harness) -> None:
    three.proxy_dies(1)
    three.proxy_dies(2)
    three.received()
    three.proxy_starts(2)
    assert three.proxies[2].received() == [("configure",), ("accept",), COVER_1, ("uncover", 2)]


def test_no_listener_is_taken_over_before_the_start_or_after_the_stop() -> None:
    early = Harness(2)
    early.proxy_dies(1)
    early.proxy_starts(1)
    assert ("cover", "web", 1, "socket 1") not in early.proxies[0].received()
    early.group.accept()
    early.group.stop(None)
    early.received()
    early.group.exited(cast("Any", early.proxies[1]))
    assert early.received() == [[], []]
    assert early.loop.callback is None, "no proxy is pinged any more"


def test_the_listeners_of_a_stuck_proxy_are_taken_over_until_it_answers(three: Harness) -> None:
    for _ in range(DOUBTED_AFTER):
        three.ping()
        three.proxy_answers(0)
        three.proxy_answers(2)
        assert three.received() == [[], [], []]
    three.ping()
    assert three.received() == [[COVER_1], [], [COVER_1]]
    three.ping()
    assert three.received() == [[], [], []], "once"
    assert three.group.can_accept
    three.proxy_answers(1)
    assert three.received() == [[("uncover", 1)]] * 3
    assert three.slots.covered == set()


def test_a_late_answer_to_a_ping_counts(three: Harness) -> None:
    for _ in range(DOUBTED_AFTER * 3):
        three.ping()
        three.ping()
        for slot in range(3):
            three.proxy_answers(slot)
    assert three.received() == [[], [], []]


def test_the_listeners_of_a_killed_proxy_are_taken_over_until_its_successor_is_ready(
    three: Harness,
) -> None:
    for _ in range(DOUBTED_AFTER + 1):
        three.ping()
        three.proxy_answers(0)
        three.proxy_answers(2)
    three.proxy_dies(1)
    three.received()
    three.proxy_starts(1)
    assert three.slots.covered == set()
    three.ping()
    assert three.received()[0] == [("uncover", 1)], (
        "the unanswered pings of the process before do not count"
    )


def test_a_proxy_in_a_crash_loop_is_reported_with_those_that_take_its_clients(
    three: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (
        "proxy/1 is away; proxy/0, proxy/2 take its clients",
        "proxy/0 is away; proxy/2 take its clients",
        "proxy/2 is away, and no other proxy is ready: clients wait",
    )
    for slot, line in zip((1, 0, 2), lines, strict=True):
        three.proxy_dies(slot)
        three.proxies[slot].state = State.CRASH_LOOP
        three.group.gave_up(cast("Any", three.proxies[slot]))
        assert caplog.messages[-1] == line
        assert three.group.can_accept is (slot != 2)


def test_a_proxy_that_stays_stuck_is_killed_once(three: Harness) -> None:
    for _ in range(int(HUNG_S) + 5):
        three.ping()
        three.proxy_answers(0)
        three.proxy_answers(2)
    assert [proxy.signals for proxy in three.proxies] == [[], [signal.SIGKILL], []]


def test_a_single_proxy_that_is_stuck_does_not_accept_and_is_killed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Harness(1)
    one.group.accept()
    for _ in range(DOUBTED_AFTER + 1):
        assert one.accepts()
        one.ping()
    assert not one.accepts()
    assert caplog.messages == ["proxy/0 does not answer; no client is served"]
    for _ in range(int(HUNG_S)):
        one.ping()
    assert one.proxies[0].signals == [signal.SIGKILL]
    one.proxy_dies(0)
    one.proxy_starts(0)
    assert one.accepts()
    one.ping()
    one.ping()
    assert one.proxies[0].signals == [signal.SIGKILL], "the silence of the one before is over"


def test_a_single_proxy_that_answers_again_accepts_again() -> None:
    one = Harness(1)
    one.group.accept()
    for _ in range(DOUBTED_AFTER + 3):
        one.ping()
    assert not one.accepts()
    one.proxy_answers(0)
    assert one.accepts()
    assert one.proxies[0].signals == []


def test_a_supervisor_that_was_asleep_kills_nobody(three: Harness) -> None:
    three.received()
    for _ in range(10):
        # Nobody answers: all of them were asleep.
        three.ping(late_s=3600.0)
        assert three.slots.covered == set()
    three.ping(late_s=ASLEEP_S)
    assert [proxy.signals for proxy in three.proxies] == [[], [], []]


def test_without_a_proxy_the_group_is_at_rest_and_can_accept() -> None:
    none = Harness(0)
    assert none.group.can_accept
    assert none.group.at_rest
    assert not none.group.send_to_all({"cmd": "reopen"})
