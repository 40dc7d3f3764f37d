"""The end has an order: workers of an app hear first, proxies finish, then workers leave."""

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_proxy.messages import DRAIN
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.children.stop_times import AT_ONCE_S
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.stop_sequence import StopSequence
from penstock_worker.contract import STOP

HOUR_S = 3600.0
_pids = iter(range(1, 1000))


class Child:
    """A child that ends when the test says so, and notes what it was told."""

    def __init__(self, scene: "Scene", name: str, *, ours: bool = True) -> None:
        service, _, slot = name.partition("/")
        role = "proxy" if service == "proxy" else "worker"
        self.name = name
        self.plan = SimpleNamespace(
            role=role, service="" if role == "proxy" else service, slot=int(slot),
            runs_our_code=ours, service_stop_s={"web": HOUR_S},
        )  # fmt: skip
        self.state = State.UP
        self.left_behind = False
        self.pid: int | None = next(_pids)
        self.number = self.pid
        self._scene = scene

    @property
    def at_rest(self) -> bool:
        return self.pid is None

    def send(self, message: dict[str, Any]) -> bool:
        self._scene.log.append(f"{self.name} {message['cmd']}")
        return True

    def stop(self, at_most_s: float | None = None) -> None:
        if self.state is State.UP:
            self.state = State.STOPPING
            self._scene.log.append(f"{self.name} stop")
            self._scene.times[self.name] = at_most_s

    def stop_at_once(self, within_s: float) -> None:
        self.state = State.STOPPING
        self._scene.log.append(f"{self.name} at once")
        self._scene.times[self.name] = within_s

    def stop_now(self) -> None:
        self._scene.log.append(f"{self.name} kill")

    def ends(self) -> None:
        self.pid, self.state = None, State.DOWN
        self._scene.condition.notify()

    def restarts(self) -> None:
        self.pid = next(_pids)
        self._scene.condition.notify()


class Scene:
    """Service web is an app behind proxies, cmd a command behind them, own accepts by itself."""

    def __init__(self, stop_s: float = HOUR_S) -> None:
        self.log: list[str] = []
        self.times: dict[str, float | None] = {}
        self.condition = Condition()
        self.slots = Slots()
        self.proxy = Child(self, "proxy/0")
        self.slots.proxies.append(cast("Any", self.proxy))
        self.web = Child(self, "web/0")
        self.cmd = Child(self, "cmd/0", ours=False)
        self.own = Child(self, "own/0")
        for child in (self.web, self.cmd, self.own):
            self.slots.add(cast("Any", child))
        services = {
            name: SimpleNamespace(
                has_proxy=name != "own", timeouts=SimpleNamespace(stop=stop_s),
                command=("c",) if name == "cmd" else None,
            )
            for name in ("web", "cmd", "own")
        }  # fmt: skip
        clock = asyncio.get_running_loop().time
        self.sequence = StopSequence(cast("Any", services), self.slots, self.condition, clock)
        self._run: asyncio.Task[None] | None = None

    # The part of `Proxies` that matters.

    @property
    def at_rest(self) -> bool:
        return self.proxy.at_rest

    def stop(self, at_most_s: float | None) -> None:
        self.log.append(f"{self.proxy.name} {DRAIN}")
        self.proxy.stop(at_most_s)

    def start(self, at_most_s: float | None = None) -> None:
        run = self.sequence.run(cast("Any", self), at_most_s)
        self._run = asyncio.get_running_loop().create_task(run)

    async def until(self, *lines: str) -> None:
        async with asyncio.timeout(30):
            while not set(lines) <= set(self.log):  # noqa: ASYNC110 -- the scene sets no event
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        for child in (self.proxy, self.web, self.cmd, self.own):
            child.ends()
        assert self._run is not None
        async with asyncio.timeout(30):
            await self._run


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "penstock.supervisor"):
        yield caplog


async def test_an_app_hears_before_the_proxies_and_leaves_after_them(
    warnings: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.start()
    await scene.until("own/0 stop")
    assert scene.log == [f"web/0 {STOP}", f"proxy/0 {DRAIN}", "proxy/0 stop", "own/0 stop"]
    scene.proxy.ends()
    await scene.until("web/0 stop", "cmd/0 stop")
    # The time of the app runs since it was told; the command is told only now.
    told = scene.times["web/0"]
    assert told is not None
    assert 0 < told < HOUR_S
    assert scene.times["cmd/0"] is None
    await scene.end()
    assert "stopped" in warnings.text


async def test_a_worker_that_is_started_again_meanwhile_hears_it_too() -> None:
    scene = Scene()
    scene.start()
    await scene.until("own/0 stop")
    scene.log.clear()
    scene.web.restarts()
    await scene.until(f"web/0 {STOP}")
    assert scene.log == [f"web/0 {STOP}"], "and nobody hears it twice"
    await scene.end()


async def test_workers_leave_in_time_although_a_proxy_does_not_end() -> None:
    scene = Scene(stop_s=0.05)
    scene.start()
    await scene.until("web/0 stop", "cmd/0 stop")
    assert not scene.proxy.at_rest
    await scene.end()


async def test_at_once_proxies_cut_first_and_workers_after_them() -> None:
    scene = Scene()
    scene.start()
    await scene.until("own/0 stop")
    scene.log.clear()
    scene.sequence.at_once()
    assert scene.log == ["proxy/0 at once", "own/0 at once"]
    scene.proxy.ends()
    await scene.until("web/0 at once", "cmd/0 kill")
    assert scene.times["web/0"] == AT_ONCE_S
    await scene.end()


async def test_a_stop_can_be_at_once_from_the_start() -> None:
    scene = Scene()
    scene.sequence.at_once()
    scene.start()
    await scene.until("proxy/0 at once", "own/0 at once")
    assert not any(line.startswith(("web/0 at once", "cmd/0 kill")) for line in scene.log)
    scene.proxy.ends()
    await scene.until("web/0 at once", "cmd/0 kill")
    assert scene.times["web/0"] == AT_ONCE_S
    await scene.end()


async def test_a_failed_start_does_not_take_longer_than_it_is_given() -> None:
    scene = Scene()
    scene.start(at_most_s=5.0)
    await scene.until("own/0 stop")
    assert scene.times["own/0"] == 5.0
    scene.proxy.ends()
    await scene.until("web/0 stop")
    told = scene.times["web/0"]
    assert told is not None
    assert told <= 5.0
    await scene.end()


async def test_at_once_holds_for_what_an_ended_worker_left_as_well() -> None:
    scene = Scene()
    scene.web.state, scene.web.left_behind = State.DOWN, True
    scene.sequence.at_once()
    assert "web/0 at once" in scene.log


@pytest.mark.parametrize("count", [None, "3", -1, 0, int("9" * 4299), 1e308])
async def test_what_was_cut_is_added_up_and_nonsense_is_not(
    warnings: pytest.LogCaptureFixture, count: object
) -> None:
    scene = Scene()
    scene.start()
    await scene.until("own/0 stop")
    scene.sequence.was_cut(cast("Any", scene.web), 3)
    scene.sequence.was_cut(cast("Any", scene.proxy), 2)
    scene.sequence.was_cut(cast("Any", scene.proxy), count)
    # A worker says it once; a program of its own may say it as often as it likes.
    scene.sequence.was_cut(cast("Any", scene.web), 1000)
    await scene.end()
    assert "web/0: the time to finish is over; cut: 3" in warnings.text
    assert "requests and connections that were cut: 5" in warnings.text


async def test_what_was_cut_before_the_stop_is_not_counted_in_it(
    warnings: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.sequence.was_cut(cast("Any", scene.web), 3)
    scene.start()
    await scene.until("own/0 stop")
    await scene.end()
    assert "web/0: the time to finish is over; cut: 3" in warnings.text
    assert "requests and connections that were cut" not in warnings.text


async def test_only_a_command_behind_a_proxy_makes_a_stop_take_twice_as_long() -> None:
    assert Scene(stop_s=30.0).sequence.longest_s == 60.0
