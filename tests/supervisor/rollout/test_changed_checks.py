"""Other checks are for workers that come with them, or else have to suit those that are there.

Proxies and workers are real processes.
"""

from pathlib import Path
from typing import Any

import pytest
from tests.support.live.many_clients import SCHEMES, once
from tests.support.supervisor.changing_run import ChangingRun, config, running, service, until

from penstock_supervisor.config.changes import EVERYTHING
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import ReloadRefused

BEFORE: dict[str, Any] = {"path": "/", "interval": "100ms", "fall": 2, "rise": 99}
WRONG: dict[str, Any] = {**BEFORE, "path": "/only-new"}
GREEN = {"COLOUR": "green"}


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def all_up(run: ChangingRun) -> bool:
    rotation = run.supervisor._rotation
    return all(rotation.is_up(run.worker(("web", number))) for number in range(2))


def paths(run: ChangingRun) -> list[str | None]:
    plans = [run.worker(("web", number)).plan for number in range(2)]
    return [plan.health.path if plan.health else None for plan in plans]


def states(run: ChangingRun) -> list[tuple[int, str]]:
    """What happens to workers in the rotation from now on."""
    seen: list[tuple[int, str]] = []
    rotation = run.supervisor._rotation
    on_change = rotation._on_change

    def note(child: Any, state: str) -> None:
        seen.append((child.number, state))
        on_change(child, state)

    rotation._on_change = note
    return seen


async def checked_again(run: ChangingRun) -> None:
    """So often that who is not well would have fallen."""
    rotation = run.supervisor._rotation
    workers = [run.worker(("web", number)) for number in range(2)]
    for _ in range(3):
        for worker in workers:
            rotation.confirm(worker, lambda: None)
        await until(lambda: all(map(rotation.is_confirmed, workers)))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_worker_that_is_about_to_be_replaced_keeps_its_checks(
    tmp_path: Path, scheme: str
) -> None:
    first = service(scheme=scheme, health=BEFORE)
    async with running(tmp_path, config(first)) as run:
        await until(lambda: all_up(run))
        seen = states(run)
        new = config(service(scheme=scheme, health=WRONG, env=GREEN))
        prepared = await run.reconfiguration.prepare(new)
        await run.reconfiguration.apply(prepared)
        await checked_again(run)
        assert paths(run) == ["/", "/"]
        await run.reconfiguration.revert(prepared)
        await checked_again(run)
        assert seen == [], "neither the change nor the way back is seen by anybody"


async def test_so_does_one_that_is_named(tmp_path: Path) -> None:
    async with running(tmp_path, config(service(health=BEFORE))) as run:
        prepared = await run.reconfiguration.prepare(config(service(health=WRONG)))
        await run.reconfiguration.apply(prepared, {EVERYTHING, "web"})
        assert paths(run) == ["/", "/"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_worker_that_stays_and_fails_its_new_check_fails_the_change(
    tmp_path: Path, scheme: str
) -> None:
    first = service(scheme=scheme, health=BEFORE)
    async with running(tmp_path, config(first, proxies=2)) as run:
        await until(lambda: all_up(run))
        seen = states(run)
        new = config(service(scheme=scheme, health=WRONG), proxies=2)
        prepared = await run.reconfiguration.prepare(new)
        with pytest.raises(ReloadRefused, match=r"web/\d does not pass its check .*: HTTP 404"):
            await run.reconfiguration.apply(prepared)
        await run.reconfiguration.revert(prepared)
        assert paths(run) == ["/", "/"]
        await checked_again(run)
        assert seen == [], "one bad check has taken nobody down"
        assert (await once(run.address())).startswith("web")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_who_was_not_well_before_does_not_fail_the_change(
    tmp_path: Path, scheme: str
) -> None:
    async with running(tmp_path, broken(scheme, "/broken")) as run:
        await run.change(broken(scheme, "/broken-too"))
        assert paths(run) == ["/broken-too"] * 2
        await run.change(broken(scheme, "/"))
        await until(lambda: all_up(run))


def broken(scheme: str, path: str) -> Config:
    return config(service(scheme=scheme, health={"path": path, "interval": "100ms"}))


async def test_an_upstream_that_fails_its_new_check_fails_the_change(tmp_path: Path) -> None:
    async with running(tmp_path, config(service("behind"))) as run:
        address = f"127.0.0.1:{run.address('behind')[1]}"

        def front(path: str) -> Config:
            health = {"path": path, "interval": "100ms"}
            return config(service("behind"), service(upstreams=(address,), health=health))

        await run.change(front("/"))
        rotation = run.supervisor._rotation
        await until(lambda: "web" in rotation.services_up())
        prepared = await run.reconfiguration.prepare(front("/nothing"))
        why = f"web: {address} does not pass its check .*: HTTP 404"
        with pytest.raises(ReloadRefused, match=why):
            await run.reconfiguration.apply(prepared)
        await run.reconfiguration.revert(prepared)
        assert "web" in rotation.services_up()
