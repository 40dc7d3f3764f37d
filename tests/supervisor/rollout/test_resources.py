"""Plans by the configuration in force: ports, directories, and who needs a new process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.process.spawn import SpawnError
from penstock_supervisor.rollout import directories
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.revision import Revision

if TYPE_CHECKING:
    from penstock_supervisor.children.child import Child

SCHEMES = ("ports", "handoff", "shared", "reuseport")


def config(proxies: int = 1, **keys: Any) -> Config:
    service = {"name": "web", "listen": "127.0.0.1:0", "app": "a:b", **keys}
    return Config(
        admin="", run_dir="", proxies=proxies, services=(Service.model_validate(service),)
    )


class Scene:
    def __init__(self, first: Config) -> None:
        self.resources = Resources(first, {"COLOUR": "blue"}, {}, stdout=1)

    def close(self) -> None:
        self.resources.close()

    def plan(self, slot: int = 0) -> ChildPlan:
        return self.resources.worker_plan(self.resources.services["web"], slot)

    def use(self, new: Config) -> None:
        resources, before = self.resources, self.resources.revision
        resources.use(
            Revision(
                before.number + 1, new, {}, resources.directories.resolve(new), before.addresses
            )
        )
        resources.ports.use(resources.ports.choose(new.services, ()))

    def needs_new_process(self, plan: ChildPlan) -> bool:
        return self.resources.needs_new_process(child(plan))


def child(plan: ChildPlan) -> "Child":
    return cast("Child", SimpleNamespace(plan=plan))


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scene(scheme: str) -> Iterator[Scene]:
    with closing(Scene(config(scheme=scheme))) as scene:
        yield scene


def test_a_successor_has_the_other_port_of_its_slot(scene: Scene, scheme: str) -> None:
    first = scene.plan()
    second, beside = scene.resources.successor_plan(child(first))
    third, _ = scene.resources.successor_plan(child(second))
    assert beside
    assert (first.address == second.address) is (scheme != "ports")
    assert third == first
    if scheme == "ports":
        assert {first.address, second.address} == set(scene.resources.ports.of("web", 0))
        assert second.address is not None
        assert second.environment["PORT"] == str(second.address.port)


def test_without_a_second_port_a_worker_is_replaced_in_place() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys: dict[str, Any] = {"workers": 1, "worker_ports": f"{port}-{port}"}
    with closing(Scene(config(**keys))) as scene:
        first = scene.plan()
        assert scene.resources.successor_plan(child(first)) == (first, False)


@pytest.mark.parametrize(
    "keys",
    [
        {"timeouts": {"start": "7s", "stop": "9s"}}, {"restart": {"max_restarts": 9}},
        {"liveness": {"timeout": "0s"}}, {"health": {"path": "/x"}}, {"workers": 5},
        {"weights": [1, 2]},
    ],
)  # fmt: skip
def test_settings_need_no_new_process_and_come_into_the_plan(
    scene: Scene, scheme: str, keys: dict[str, Any]
) -> None:
    if scheme in ("shared", "reuseport") and "weights" in keys:
        return
    running = scene.plan()
    scene.use(config(scheme=scheme, **keys))
    assert not scene.needs_new_process(running)
    settled = scene.resources.current_settings(running)
    wanted = scene.plan()
    assert settled == wanted
    assert settled.restart == wanted.restart


@pytest.mark.parametrize(
    "keys",
    [
        {"app": "c:d"}, {"app": None, "command": ["x"]}, {"env": {"COLOUR": "red"}},
        {"directory": "/"}, {"on_uncaught": "retire"},
    ],
)  # fmt: skip
def test_another_program_needs_a_new_process(
    scene: Scene, scheme: str, keys: dict[str, Any]
) -> None:
    running = scene.plan()
    scene.use(config(scheme=scheme, **keys))
    assert scene.needs_new_process(running)


def test_the_process_on_the_second_port_is_no_other_process(scene: Scene) -> None:
    running, _ = scene.resources.successor_plan(child(scene.plan()))
    assert not scene.needs_new_process(running)


def test_only_a_worker_with_links_needs_one_for_another_proxy(scene: Scene, scheme: str) -> None:
    running = scene.plan()
    scene.use(config(2, scheme=scheme))
    assert scene.needs_new_process(running) is (scheme == "handoff")


def test_whoever_starts_while_proxies_change_has_a_link_to_each(scene: Scene, scheme: str) -> None:
    """A worker that crashed, or one that retires, is started by its own plan."""
    before, running = scene.resources.revision, scene.plan()
    has_links = scheme == "handoff"
    scene.use(config(3, scheme=scheme))
    started = scene.resources.before_start(running, ())
    assert started.link_count == (3 if has_links else 0)
    assert not scene.needs_new_process(started)
    scene.resources.plan_by(before)
    assert scene.resources.before_start(running, ()).link_count == started.link_count
    assert not scene.needs_new_process(started), "one too many does no harm"


def test_a_worker_outside_the_range_of_ports_needs_another_one() -> None:
    with closing(Scene(config(workers=1))) as scene:
        running = scene.plan()
        scene.use(config(workers=1, worker_ports="33100-33900"))
        assert scene.needs_new_process(running)
        successor, beside = scene.resources.successor_plan(child(running))
        assert beside
        assert successor.address is not None
        assert 33100 <= successor.address.port <= 33900


def test_a_roll_out_that_goes_back_plans_by_the_revision_before(scene: Scene, scheme: str) -> None:
    before, running = scene.resources.revision, scene.plan()
    scene.use(config(scheme=scheme, env={"COLOUR": "red"}))
    scene.resources.plan_by(before)
    assert not scene.needs_new_process(running)
    assert scene.plan() == running


def swapped_link(folder: Path) -> Path:
    link = folder / "current"
    for name in ("2", "1"):
        (folder / name).mkdir()
        link.unlink(missing_ok=True)
        link.symlink_to(name)
    return link


async def look_for(scene: Scene, running: ChildPlan) -> str:
    """Where a worker with this plan is started."""
    assert running.directory is not None
    assert running.origin is not None
    return await scene.resources.directories.look_for(running.directory, running.origin.service)


async def test_a_crashed_worker_is_started_in_its_release_and_a_reload_in_the_next(
    tmp_path: Path, scheme: str
) -> None:
    link = swapped_link(tmp_path)
    with closing(Scene(config(scheme=scheme, directory=str(link)))) as scene:
        running = scene.plan()
        link.unlink()
        link.symlink_to("2")
        assert await look_for(scene, running) == str(tmp_path / "1")
        scene.use(config(scheme=scheme, directory=str(link)))
        assert scene.needs_new_process(running)
        assert scene.plan().directory == str(tmp_path / "2")


async def test_where_its_release_is_deleted_it_is_started_in_the_present_one(
    tmp_path: Path,
) -> None:
    link = swapped_link(tmp_path)
    with closing(Scene(config(directory=str(link)))) as scene:
        running = scene.plan()
        link.unlink()
        link.symlink_to("2")
        (tmp_path / "1").rmdir()
        assert await look_for(scene, running) == str(tmp_path / "2")
        (tmp_path / "2").rmdir()
        assert await look_for(scene, running) == running.directory, "the start fails, and says why"


async def test_a_directory_that_does_not_answer_is_a_fault_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(directories, "why_no_directory", lambda _: answers.wait(60))
    monkeypatch.setattr(directories, "LOOK_S", 0.01)
    with closing(Scene(config(directory=str(tmp_path)))) as scene:
        plan = scene.plan()
        with pytest.raises(SpawnError, match="a disk, or a mount, does not answer") as failed:
            await look_for(scene, plan)
        assert (failed.value.key, failed.value.temporary) == ("directory", True)
        # The disk is well again, and the one that asked first hangs for ever.
        monkeypatch.setattr(directories, "why_no_directory", lambda _: "")
        monkeypatch.setattr(directories, "LOOK_S", 60.0)
        assert await look_for(scene, plan) == plan.directory
    answers.set()


async def test_however_many_start_at_once_one_thread_looks_at_their_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(directories, "why_no_directory", lambda _: not answers.wait(60))
    with closing(Scene(config(directory=str(tmp_path)))) as scene:
        plan = scene.plan()
        # A test before this one may have left some behind.
        before = set(threading.enumerate())
        looks = [asyncio.ensure_future(look_for(scene, plan)) for _ in range(200)]
        await asyncio.sleep(0)
        (thread,) = set(threading.enumerate()) - before
        assert thread.name == f"start directory {plan.directory}"
        # Who is told to stop meanwhile takes nothing away from the others.
        looks.pop().cancel()
        await asyncio.sleep(0)
        answers.set()
        assert set(await asyncio.gather(*looks)) == {plan.directory}


def test_a_restart_on_another_port_keeps_the_revision_of_its_worker() -> None:
    with closing(Scene(config(workers=1))) as scene, socket.socket() as stranger:
        running = scene.plan()
        assert running.address is not None
        scene.use(config(workers=1, env={"COLOUR": "red"}))
        stranger.bind((running.address.host, running.address.port))
        stranger.listen()
        moved = scene.resources.before_start(running, ())
        assert moved.address is not None
        assert moved.address != running.address
        assert moved.environment["COLOUR"] == "blue"
        assert moved.environment["PORT"] == str(moved.address.port)
        assert moved.address in scene.resources.ports.of("web", 0)


def test_a_service_that_is_gone_stays_until_it_is_forgotten(scene: Scene) -> None:
    listeners = scene.resources.listeners["web"]
    scene.resources.use(scene.resources.revision._replace(config=Config(services=())))
    assert "web" in scene.resources.services
    scene.resources.forget("web")
    assert not scene.resources.services
    assert not scene.resources.listeners
    assert not [*listeners.views()]


def test_a_directory_that_a_link_leads_to_now_is_found(tmp_path: Path) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
    current = tmp_path / "current"
    current.symlink_to("one")
    same = config(directory=str(current))
    with closing(Scene(same)) as scene:
        assert scene.resources.moved(same) == {}
        current.unlink()
        current.symlink_to("two")
        assert scene.resources.moved(same) == {"web": str(tmp_path / "two")}
        # A service that is new has been nowhere before.
        added = same.services[0].model_copy(update={"name": "new"})
        assert scene.resources.moved(same.model_copy(update={"services": (added,)})) == {}
