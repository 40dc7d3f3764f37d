"""A proxy that is down or stuck has its listeners taken over by the others until it is ready, and
one that stays stuck is killed, also a single one.

Proxies are fakes that record their messages, the loop is a fake whose timer a test fires, and
sockets are texts. Which proxy gets which message, and when, is all that is decided here.
"""

import signal
from collections.abc import Callable, Iterable
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
        self.history = SimpleNamespace(last_exit_reason="why")
        self._messages: list[tuple[Any, ...]] = []

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self, _: str) -> None:
        self.signals.append(signal.SIGKILL)

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

    def send_each(self, messages: Iterable[dict[str, Any]]) -> bool:
        for message in messages:
            self.send(message)
        return True

    def stop(self, _: float | None = None) -> None:
        self.state = State.STOPPING

    def start(self) -> None:
        self.state = State.STARTING

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
        self.listening: list[int] = []
        """Proxies whose sockets were told to listen."""
        self.targets_fail = False
        self.knowing: set[int] = set()
        """Proxies that would pick what the others pick."""
        # Of `web` each proxy has a socket of its own, of `local` all have the same.
        listeners: dict[str, Any] = {
            "web": SimpleNamespace(
                proxy_socket=lambda slot: f"socket {slot}", listen_for=self.listening.append
            ),
            "local": SimpleNamespace(proxy_socket=lambda _: None, listen_for=lambda _: None),
        }
        self.resources = resources = SimpleNamespace(
            proxies_wanted=count,
            proxy_plan=lambda _, slot: SimpleNamespace(slot=slot, role="proxy", service=""),
            listeners=listeners,
            proxy_listeners=lambda name, _: [listeners[name]],
            config=SimpleNamespace(services=()),
            proxy_config=lambda *_: SimpleNamespace(services=(), model_dump=lambda mode: {}),
        )
        rotation = SimpleNamespace(
            proxy_exited=lambda _: None,
            proxy_spawned=lambda *_: None,
            targets=self.targets,
            is_up_anywhere=lambda _: True,
            knows_all=lambda slot: slot in self.knowing,
        )
        self.group = Proxies(
            cast("Any", self.loop), *cast("Any", (resources, self.slots, rotation))
        )

    def targets(self) -> dict[str, Any]:
        if self.targets_fail:
            raise KeyError("of a service that is gone")
        return {}

    def want(self, count: int) -> None:
        """So many proxies are configured now."""

        def make(plan: Any) -> Any:
            self.proxies.append(Proxy(plan.slot))
            return self.proxies[-1]

        self.resources.proxies_wanted = count
        self.group._make = make
        self.group.use_number()

    def proxy_leaves(self, slot: int) -> Any:
        """Its process has ended; returns who keeps its counts."""
        proxy = self.proxies.pop(slot)
        proxy.state = State.DOWN
        self.group.exited(cast("Any", proxy))
        return self.group.forget_ended(cast("Any", proxy))

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


def test_a_proxy_that_comes_accepts_when_it_would_pick_what_the_others_pick(
    three: Harness,
) -> None:
    three.want(4)
    three.proxy_starts(3)
    three.ping()
    assert three.received() == [[], [], [], [("configure",)]]
    assert 3 in three.slots.covered
    three.knowing.add(3)
    three.ping()
    assert three.listening == [3]
    assert three.received() == [[("uncover", 3)]] * 3 + [[("accept",), ("uncover", 3)]]
    assert not three.slots.covered


def test_a_proxy_that_comes_covers_those_that_are_away(three: Harness) -> None:
    three.proxy_dies(1)
    three.want(4)
    three.proxy_starts(3)
    three.received()
    three.knowing.add(3)
    three.ping()
    assert three.received()[3] == [COVER_1, ("accept",), ("uncover", 3)]


def test_a_proxy_that_is_not_needed_is_covered_for_ever_and_forgotten_when_it_has_ended(
    three: Harness,
) -> None:
    three.want(2)
    cover = ("cover", "web", 2, "socket 2")
    assert three.received() == [[cover], [cover], []]
    leaving = three.proxies[2]
    assert leaving.state is State.STOPPING
    assert cast("Any", leaving) in three.group.leaving
    assert three.proxy_leaves(2) is three.proxies[0]
    assert [one.plan.slot for one in three.slots.proxies] == [0, 1]
    assert three.slots.covered == {2}
    three.received()
    three.proxy_dies(1)
    three.proxy_starts(1)
    assert cover in three.received()[1], "the next one takes it over as well"


def test_a_proxy_that_is_needed_again_while_it_leaves_comes_back_when_it_has_ended(
    three: Harness,
) -> None:
    three.want(2)
    three.want(3)
    assert len(three.proxies) == 3, "its slot is taken"
    assert three.proxy_leaves(2) is three.proxies[0]
    assert [one.plan.slot for one in three.slots.proxies] == [0, 1, 2]
    three.proxy_starts(2)
    three.knowing.add(2)
    three.ping()
    assert not three.slots.covered


def test_proxies_stay_in_the_order_of_their_slots(three: Harness) -> None:
    three.want(1)
    three.proxy_leaves(1)
    three.want(3)
    assert [one.plan.slot for one in three.slots.proxies] == [0, 1, 2], "the last one still ends"


def test_a_proxy_that_is_the_only_one_and_comes_back_keeps_the_counts() -> None:
    one = Harness(1)
    one.group.accept()
    one.want(0)
    one.want(1)
    assert one.proxy_leaves(0) is one.proxies[0]
    assert one.proxies[0].state is State.STARTING


def test_a_proxy_that_cannot_be_told_what_there_is_is_killed(
    three: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    three.proxy_dies(1)
    three.targets_fail = True
    three.proxy_starts(1)
    assert three.proxies[1].signals == [signal.SIGKILL]
    assert caplog.messages[-1] == "proxy/1: a bug of penstock"


def test_a_proxy_that_could_not_be_started_is_named(three: Harness) -> None:
    three.want(4)
    assert not three.group.newcomers_started()
    three.proxies[3].state = State.GIVEN_UP
    assert three.group.newcomers_started()
    assert three.group.newcomers_failed() == ("proxy/3 could not be started: why",)


def test_a_proxy_of_the_start_is_never_forgotten(three: Harness) -> None:
    three.proxies[1].state = State.GIVEN_UP
    assert three.group.forget_ended(cast("Any", three.proxies[1])) is None
    assert len(three.slots.proxies) == 3
