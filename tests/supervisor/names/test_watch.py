"""Names are looked up again when they are due, and who has the members is told what has changed.

The clock is the test's, and so is who answers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.config.upstream_address import UpstreamAddress
from penstock_supervisor.names import watch
from penstock_supervisor.names.answers import (
    Endpoint,
    Found,
    LookupFailedError,
    LookupTimeoutError,
    NotFoundError,
)
from penstock_supervisor.names.lookup import Servers
from penstock_supervisor.names.schedule import HOLD_S
from penstock_supervisor.names.watch import Name, NameWatch

ALL, PLAIN = Name("web", "dns:all.test:80"), Name("web", "plain.test:80")


def endpoint(host: str) -> Endpoint:
    return Endpoint(Address(host, 80), 1, "all.test:80")


A, B = endpoint("10.0.0.1"), endpoint("10.0.0.2")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 — nothing sets an event for us
            await asyncio.sleep(0.001)


class World:
    """The members, the clock, and what look-ups say."""

    def __init__(self, *names: Name) -> None:
        self.watched = list(names)
        self.present: dict[Name, tuple[Endpoint, ...]] = {}
        self.changes: list[tuple[Name, tuple[Endpoint, ...]]] = []
        self.answers: dict[str, Found | Exception | None] = {}
        """By host; None: none comes."""
        self.looks = 0
        self.under_way = 0
        self.asked: list[tuple[str, Servers]] = []
        self.now = 1000.0
        self.watch = NameWatch(self.look_up, self, lambda: self.now, lambda: 7.0)

    # As `watch.Members`.

    def names(self) -> tuple[Sequence[Name], Servers]:
        self.looks += 1
        return self.watched, ("10.0.0.53:53",)

    def endpoints(self, name: Name) -> tuple[Endpoint, ...]:
        return self.present.get(name, ())

    def change(self, name: Name, endpoints: tuple[Endpoint, ...]) -> None:
        self.changes.append((name, endpoints))
        self.present[name] = endpoints

    async def look_up(self, upstream: UpstreamAddress, servers: Servers) -> Found:
        self.asked.append((upstream.address.host, servers))
        answer = self.answers.get(upstream.address.host, NotFoundError("no such name"))
        self.under_way += 1
        try:
            if answer is None:
                await asyncio.Event().wait()
        finally:
            self.under_way -= 1
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    async def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and all that is due be done."""
        self.now += seconds
        seen = self.looks
        await until(lambda: self.looks >= seen + 3)

    @property
    def asked_hosts(self) -> list[str]:
        return [host for host, _ in self.asked]


@asynccontextmanager
async def watching(world: World) -> AsyncIterator[World]:
    task = asyncio.ensure_future(world.watch.run())
    try:
        await world.turn()
        yield world
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.001)


async def test_a_name_is_looked_up_again_when_its_time_is_over_and_not_before() -> None:
    world = World(ALL)
    world.answers["all.test"] = Found((A,), 20.0)
    async with watching(world):
        assert world.changes == [(ALL, (A,))]
        await world.turn(19.0)
        assert len(world.asked) == 1
        world.answers["all.test"] = Found((B, A), 20.0)
        await world.turn(1.0)
        assert world.asked == [("all.test", ("10.0.0.53:53",))] * 2
        assert world.changes[1:] == [(ALL, (A, B))]


async def test_the_same_answer_in_another_order_is_no_change() -> None:
    world = World(ALL)
    world.answers["all.test"] = Found((A, B), 1.0)
    async with watching(world):
        for _ in range(5):
            world.answers["all.test"] = Found((B, A), 1.0)
            await world.turn(1.0)
        assert len(world.asked) == 6
        assert len(world.changes) == 1


async def test_a_failure_keeps_the_members_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    world = World(ALL)
    world.answers["all.test"] = Found((A, B), 1.0)
    async with watching(world):
        world.answers["all.test"] = LookupTimeoutError("nobody has answered")
        for _ in range(10):
            await world.turn(100.0)
        world.answers["all.test"] = Found((A, B), 1.0)
        await world.turn(100.0)
        assert len(world.changes) == 1
        (view,) = world.watch.views()
    assert caplog.messages == [
        "web: dns:all.test:80: nobody has answered; its 2 members stay, and it is looked up again",
        "web: dns:all.test:80 is found again",
    ]
    assert view.lookups == {"found": 2, "not_found": 0, "timeout": 10, "failed": 0}
    assert (view.result, view.ttl_s, view.last_found_at, view.addresses) == ("found", 1.0, 7.0, 2)


async def test_that_there_is_nothing_takes_the_members_away_when_it_has_lasted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(ALL)
    world.answers["all.test"] = Found((A,), 1.0)
    async with watching(world):
        world.answers["all.test"] = NotFoundError("no such name")
        await world.turn(1.0)
        await world.turn(HOLD_S - 1)
        assert len(world.changes) == 1
        await world.turn(HOLD_S)
        assert world.changes[1:] == [(ALL, ())]
        assert caplog.messages[1:] == [f"web: dns:all.test:80: nothing was found for {HOLD_S:g} s"]
        world.answers["all.test"] = Found((B,), 1.0)
        await world.turn(HOLD_S)
        assert world.changes[2:] == [(ALL, (B,))]


async def test_a_plain_name_keeps_its_last_address(caplog: pytest.LogCaptureFixture) -> None:
    world = World(PLAIN)
    world.answers["plain.test"] = Found((A,), 1.0)
    async with watching(world):
        world.answers["plain.test"] = NotFoundError("no such name")
        for _ in range(5):
            await world.turn(HOLD_S)
        assert len(world.changes) == 1
    assert caplog.messages == [
        "web: plain.test:80: no such name; its member stays, and it is looked up again"
    ]


async def test_a_name_without_a_member_is_looked_up_until_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(ALL)
    async with watching(world):
        await world.turn(HOLD_S)
        assert caplog.messages == [
            "web: dns:all.test:80: no such name; it has no member, and is looked up again"
        ]
        world.answers["all.test"] = Found((A,), 1.0)
        await world.turn(HOLD_S)
        assert world.changes == [(ALL, (A,))]


async def test_one_that_hangs_delays_no_other_and_is_not_asked_twice() -> None:
    world = World(ALL, PLAIN)
    world.answers |= {"all.test": None, "plain.test": Found((A,), 1.0)}
    async with watching(world):
        for _ in range(3):
            await world.turn(10.0)
        assert world.asked_hosts.count("all.test") == 1
        assert world.asked_hosts.count("plain.test") == 4


async def test_names_come_and_go_and_nobody_waits_for_one_that_is_gone() -> None:
    world = World(ALL)
    world.answers |= {"all.test": None, "plain.test": Found((A,), 100.0)}
    async with watching(world):
        assert world.under_way == 1
        world.watched = [PLAIN]
        await world.turn()
        assert world.under_way == 0
        assert world.changes == [(PLAIN, (A,))]
        assert [view.name for view in world.watch.views()] == [PLAIN.upstream]


async def test_a_bug_ends_neither_the_run_nor_the_look_ups(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(ALL)
    world.answers["all.test"] = ZeroDivisionError("x")
    async with watching(world):
        assert "a bug of penstock" in caplog.text
        world.answers["all.test"] = LookupFailedError("it says SERVFAIL")
        await world.turn(HOLD_S)
        (view,) = world.watch.views()
        assert view.lookups["failed"] == 2
        world.answers["all.test"] = Found((A,), 1.0)
        await world.turn(HOLD_S)
        assert world.changes == [(ALL, (A,))]
