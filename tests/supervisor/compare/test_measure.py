"""A load runs in enough processes; CPU time and split are those of its own duration.

Covers `compare/faults`.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from penstock_supervisor.compare import measure
from penstock_supervisor.compare.faults import recovered
from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.host.resource_usage import CpuTime
from penstock_supervisor.compare.load.driver import Job, LoadReport
from penstock_supervisor.compare.measure import LoadGenerator
from penstock_supervisor.compare.report.measurements import Measurements
from penstock_supervisor.compare.subject import all_up

JOB = Job(address="127.0.0.1:1", kind="connect", connections=4, seconds=1.0)


def report(*, limited: bool = False) -> LoadReport:
    return LoadReport(
        requests=10, errors={}, seconds=1.0, histogram={1: 10}, worst_s=0.1, cpu_share=0.1,
        limited=limited,
    )  # fmt: skip


class Driver:
    """A generator that is the limit until it has enough processes."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.calls: list[int] = []

    async def __call__(self, job: Job, processes: int = 1) -> LoadReport:
        assert job == JOB
        self.calls.append(processes)
        return report(limited=processes < self.enough)


class Subject:
    """A subject with two workers."""

    name = "x"
    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self._counts = {"0": 5}

    async def roles(self) -> Mapping[str, tuple[int, ...]]:
        return {"supervisor": (1,), "workers": (2, 3)}

    async def split(self) -> tuple[str, dict[str, int]]:
        now = dict(self._counts)
        self._counts = {"0": 9, "1": 6}
        return "connections", now

    async def outgoing_connections(self, _: Mapping[str, tuple[int, ...]]) -> int:
        return 0


@pytest.mark.parametrize(
    ("enough", "max_processes", "calls"),
    [(1, 4, [1, 1]), (2, 4, [1, 2, 2]), (9, 3, [1, 2, 3, 3]), (9, 0, [1, 1])],
)
async def test_a_limiting_generator_gets_more_processes_and_keeps_them(
    monkeypatch: pytest.MonkeyPatch, enough: int, max_processes: int, calls: list[int]
) -> None:
    driver = Driver(enough)
    monkeypatch.setattr(measure, "drive", driver)
    generator = LoadGenerator(max_processes=max_processes)
    await generator.drive(JOB)
    last = await generator.drive(JOB)
    assert driver.calls == calls
    assert last.limited == (calls[-1] < enough)


async def test_a_round_has_only_the_cpu_time_and_the_split_of_its_own_duration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = iter([CpuTime(0.5, 0.5), CpuTime(3.0, 1.0), CpuTime(0.75, 0.75), CpuTime(5.0, 3.0)])
    monkeypatch.setattr(measure, "drive", Driver(1))
    monkeypatch.setattr(resource_usage, "own_cpu_time", lambda _pids: next(spent))
    monkeypatch.setattr(resource_usage, "cpu_time", lambda _pids: next(spent))
    measurements = Measurements("x")
    await measure.load(Subject(), JOB, LoadGenerator(max_processes=1), measurements)
    subject = measurements.subject()
    assert subject.split == {"0": 4, "1": 6}
    assert subject.loads["connect"].cpu_us["supervisor"].median == pytest.approx(0.5e6 / 10)
    assert subject.loads["connect"].cpu_us["workers"].median == pytest.approx(4.0e6 / 10)
    assert subject.loads["connect"].kernel_us.median == pytest.approx(2.25e6 / 10)


def rows(*pids: int | None, **more: Any) -> list[dict[str, Any]]:
    return [{"pid": pid, "state": "ready", "health": "up", **more} for pid in pids]


def test_all_workers_are_up_when_all_run_and_are_in_rotation() -> None:
    assert all_up(rows(1, 2))
    assert all_up([{"health": "up"}])
    assert not all_up([*rows(1), *rows(2, health="down")])
    assert not all_up([*rows(1), *rows(2, state="starting")])
    assert not all_up(rows(1, health=None))


def test_full_capacity_is_back_when_the_missing_workers_are_replaced() -> None:
    kill, roll, block = (recovered(kind, rows(1, 2)) for kind in ("kill", "roll", "block"))
    assert kill(rows(1, 3))
    assert not kill(rows(1, 2))
    assert not kill([*rows(1), *rows(3, health="down")])
    assert roll(rows(3, 4))
    assert not roll(rows(3, 2))
    assert block(rows(1, 2))
    assert not block(rows(1, 2, health="down"))
