"""A reload is refused before anything is done, or a roll-out begins to what the file says now."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock_supervisor.children.events import Events
from penstock_supervisor.config.changes import EVERYTHING
from penstock_supervisor.config.loader import ConfigError
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import NotNowError, ReloadRefused
from penstock_supervisor.rollout import reloading
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.reloading import Reloading

if TYPE_CHECKING:
    from penstock_supervisor.rollout.rollouts import Rollouts


def config(**keys: Any) -> Config:
    service = {"name": "web", "listen": "127.0.0.1:8000", "app": "shop:app", **keys}
    return Config(services=(Service.model_validate(service),))


class Scene:
    """A run with one service, whose file says `file`."""

    def __init__(self) -> None:
        self.file: Config | Exception = config()
        self.hangs: threading.Event | None = None
        self.moved: dict[str, str] = {}
        self.requests: list[tuple[Config, tuple[str, ...]]] = []
        self.now = 1e9
        self.records = RolloutRecords(Events(), lambda: 0.0, lambda: self.now)
        self.goal = config()
        self.base: Config | None = None
        """Of the roll-out that is joined."""
        self.is_moved = False
        self.why_it_waits = ""
        self.cannot_be_had, self.can_be_checked = "", True
        self.reloading = Reloading(
            self.read,
            lambda _: self.moved,
            lambda: self.goal,
            self.check,
            cast("Rollouts", self),
            self.records,
        )

    async def check(self, new: Config) -> bool:
        assert new is self.file
        if self.cannot_be_had:
            raise ReloadRefused((self.cannot_be_had,))
        return self.can_be_checked

    def read(self) -> Config:
        if self.hangs is not None:
            self.hangs.wait(60)
        if isinstance(self.file, Exception):
            raise self.file
        return self.file

    def request(self, new: Config, names: tuple[str, ...], *, is_moved: bool) -> tuple[Any, bool]:
        """As `Rollouts` has it."""
        self.requests.append((new, names))
        self.is_moved = is_moved
        rollout = SimpleNamespace(
            number=len(self.requests), names=set(names) or {EVERYTHING},
            base=self.base or self.goal, why_it_waits=self.why_it_waits,
        )  # fmt: skip
        return rollout, len(self.requests) > 1

    async def refused(self, *services: str, dry_run: bool = False) -> tuple[str, ...]:
        with pytest.raises(ReloadRefused) as refusal:
            await self.reloading.request(services, dry_run=dry_run)
        assert self.requests == []
        return refusal.value.problems


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def disk(scene: Scene) -> Iterator[threading.Event]:
    """It does not answer until this is set."""
    scene.hangs = event = threading.Event()
    yield event
    event.set()


async def test_a_roll_out_begins_to_what_the_file_says_now(scene: Scene) -> None:
    scene.file = config(balance="random")
    answer = await scene.reloading.request((), dry_run=False)
    assert scene.requests == [(scene.file, ())]
    assert (answer.rollout, answer.joined) == (1, False)
    assert answer.changes == (
        'web.balance: "round_robin" -> "random"',
        "web: its workers are not replaced",
    )


async def test_who_joins_is_told_what_the_roll_out_changes_and_not_that_all_is_replaced(
    scene: Scene,
) -> None:
    scene.file = scene.goal = config(balance="random")
    scene.base = config()
    answer = await scene.reloading.request((), dry_run=False)
    assert answer.changes == (
        'web.balance: "round_robin" -> "random"',
        "web: its workers are not replaced",
    )


async def test_it_is_passed_on_that_links_lead_elsewhere(scene: Scene) -> None:
    await scene.reloading.request((), dry_run=False)
    assert not scene.is_moved
    scene.moved = {"web": "/srv/shop/2"}
    await scene.reloading.request((), dry_run=False)
    assert scene.is_moved


async def test_the_services_that_are_named_are_passed_on_and_a_joined_one_is_told(
    scene: Scene,
) -> None:
    await scene.reloading.request((), dry_run=False)
    answer = await scene.reloading.request(("web",), dry_run=False)
    assert scene.requests[1] == (scene.goal, ("web",))
    assert (answer.rollout, answer.joined) == (2, True)
    assert answer.changes == ("web: 2 workers are replaced",)


async def test_who_has_to_wait_is_told(scene: Scene) -> None:
    assert not (await scene.reloading.request((), dry_run=False)).waits
    scene.why_it_waits = "roll-out 1 has to end first"
    assert (await scene.reloading.request((), dry_run=False)).waits


async def test_a_dry_run_is_one_line_in_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await scene.reloading.request((), dry_run=True)
    scene.file = ConfigError(("one", "two", "three", "four", "five", "six"))
    await scene.refused(dry_run=True)
    assert caplog.messages == [
        "dry run: web: 2 workers are replaced",
        "dry run: it would be refused: one; two; three; four; and 2 more",
    ]


async def test_a_dry_run_begins_nothing(scene: Scene) -> None:
    scene.moved = {"web": "/srv/releases/43"}
    answer = await scene.reloading.request((), dry_run=True)
    assert (scene.requests, answer.rollout) == ([], None)
    assert "web.directory: leads to /srv/releases/43 now" in answer.changes


async def test_a_broken_file_is_refused_with_every_problem(scene: Scene) -> None:
    scene.file = ConfigError(("web.toml: one", "web.toml: two"))
    assert await scene.refused() == ("web.toml: one", "web.toml: two")
    assert not scene.records.config_ok


async def test_a_refusal_is_in_the_log_and_kept_until_a_reload_begins(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    right, scene.file = scene.goal, ConfigError(("web.toml: one", "web.toml: two"))
    await scene.refused(dry_run=True)
    assert (caplog.messages, scene.records.refusal) == ([], None), "it only asks"
    await scene.refused()
    assert caplog.messages == [
        "nothing is reloaded: web.toml: one",
        "nothing is reloaded: web.toml: two",
    ]
    assert getattr(scene.records.refusal, "reason", "") == "web.toml: one; web.toml: two"
    scene.file = right
    await scene.reloading.request((), dry_run=False)
    assert scene.records.refusal is None
    assert not scene.records.config_ok, "until its roll-out has succeeded"


async def test_what_needs_a_restart_is_refused_by_name(scene: Scene) -> None:
    scene.file = config(scheme="shared", mode="tcp")
    problems = await scene.refused("web")
    assert [problem.partition(":")[0] for problem in problems] == [
        "service.web.mode",
        "service.web.scheme",
    ]
    assert not scene.records.config_ok


async def test_a_dry_run_of_a_broken_file_is_no_failed_reload(scene: Scene) -> None:
    applied_at = scene.records.config_applied_at
    scene.now += 60.0
    scene.file = ConfigError(("web.toml: one",))
    await scene.refused(dry_run=True)
    scene.file = config(scheme="shared")
    await scene.refused(dry_run=True)
    assert scene.records.config_ok
    assert scene.records.config_applied_at == applied_at


async def test_an_unknown_service_is_a_key_error_that_names_those_that_exist(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError, match='there is no service "shop", only web'):
        await scene.reloading.request(("web", "shop"), dry_run=False)
    assert scene.requests == []
    assert caplog.messages == ['nothing is reloaded: there is no service "shop", only web']
    assert scene.records.config_ok, "nothing is wrong with it"


async def test_of_two_at_once_the_second_one_reads_the_file_after_the_first(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.reloading.request((), dry_run=False) for _ in range(10)))
    assert [answer.rollout for answer in answers] == list(range(1, 11))


async def test_files_that_cannot_be_read_in_time_are_a_refusal_and_the_next_reload_reads_anew(
    scene: Scene, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "READ_S", 0.01)
    monkeypatch.setattr(reloading, "_LEAST_S", 0.01)
    (problem,) = await scene.refused()
    assert problem == (
        "the configuration cannot be read within 0.01 s: a disk, or a mount, does not answer"
    )
    assert not scene.records.config_ok
    # Also those who had to wait for one that hangs.
    for outcome in await asyncio.gather(*(scene.refused() for _ in range(10))):
        assert outcome == (problem,)
    # Nothing of the one that hangs is in the way.
    monkeypatch.setattr(reloading, "READ_S", 60.0)
    scene.hangs = None
    assert (await scene.reloading.request((), dry_run=False)).rollout == 1


async def test_a_run_that_stops_waits_for_no_disk(scene: Scene, disk: threading.Event) -> None:
    asking = [asyncio.create_task(scene.reloading.request((), dry_run=False)) for _ in range(3)]
    # The first one reads then, and the others wait for it.
    await asyncio.sleep(0)
    scene.reloading.cancel()
    for outcome in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(outcome, NotNowError)
    with pytest.raises(NotNowError):
        await scene.reloading.request((), dry_run=False)
    assert scene.records.config_ok


@pytest.mark.parametrize("fault", [KeyError("x"), TimeoutError("60"), PermissionError(13, "no")])
async def test_any_other_fault_of_reading_is_a_refusal_that_is_recorded(
    scene: Scene, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    scene.file = fault
    (problem,) = await scene.refused()
    assert problem == f"the configuration cannot be read: a bug of penstock: {fault!r}"
    assert not scene.records.config_ok
    assert caplog.text.count("Traceback") == 1


async def test_a_dry_run_finds_what_a_roll_out_would_be_refused_for(scene: Scene) -> None:
    scene.cannot_be_had = "service.web.listen: the address is taken"
    assert await scene.refused(dry_run=True) == (scene.cannot_be_had,)
    assert scene.records.config_ok


async def test_a_dry_run_says_what_it_cannot_find_out_while_a_roll_out_runs(scene: Scene) -> None:
    scene.can_be_checked = False
    answer = await scene.reloading.request((), dry_run=True)
    assert answer.rollout is None
    assert answer.changes[-1].startswith("a roll-out runs")
