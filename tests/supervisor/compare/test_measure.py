"""How a load is measured: by enough generators, and with what the processes used meanwhile."""

from collections.abc import Mapping
from typing import Any

import pytest

from penstock_supervisor.compare import measure, resource_usage
from penstock_supervisor.compare.faults import condition
from penstock_supervisor.compare.load.driver import Job, Report
from penstock_supervisor.compare.measure import Generator
from penstock_supervisor.compare.report.measurements import Findings
from penstock_supervisor.compare.subject import all_up

JOB = Job(address="127.0.0.1:1", kind="connect", connections=4, seconds=1.0)


def report(*, limited: bool = False) -> Report:
    return Report(
        requests=10, errors={}, seconds=1.0, histogram={1: 10}, worst_s=0.1, cpu_share=0.1,
        limited=limited,
    )  # fmt: skip


class Driver:
    """A generator that is the limit until it has enough processes."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.asked: list[int] = []

    async def __call__(self, job: Job, processes: int = 1) -> Report:
        assert job == JOB
        self.asked.append(processes)
        return report(limited=processes < self.enough)


class Target:
    """A subject that counts how often it was asked, and has two workers."""

    name = "x"
    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.had = {"0": 5}

    async def roles(self) -> Mapping[str, tuple[int, ...]]:
        return {"supervisor": (1,), "workers": (2, 3)}

    async def split(self) -> tuple[str, dict[str, int]]:
        now = dict(self.had)
        self.had = {"0": 9, "1": 6}
        return "connections", now

    async def outgoing(self, _: Mapping[str, tuple[int, ...]]) -> int:
        return 0


@pytest.mark.parametrize(
    ("enough", "most", "asked"),
    [(1, 4, [1, 1]), (2, 4, [1, 2, 2]), (9, 3, [1, 2, 3, 3]), (9, 0, [1, 1])],
)
async def test_a_generator_that_is_the_limit_gets_more_processes_and_keeps_them(
    monkeypatch: pytest.MonkeyPatch, enough: int, most: int, asked: list[int]
) -> None:
    driver = Driver(enough)
    monkeypatch.setattr(measure, "drive", driver)
    generator = Generator(most=most)
    await generator.drive(JOB)
    last = await generator.drive(JOB)
    assert driver.asked == asked
    assert last.limited == (asked[-1] < enough)


async def test_a_round_has_the_time_used_and_the_split_of_what_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = iter([1.0, 4.0, 1.5, 8.0])
    monkeypatch.setattr(measure, "drive", Driver(1))
    monkeypatch.setattr(resource_usage, "own_cpu_s", lambda _pids: next(spent))
    monkeypatch.setattr(resource_usage, "cpu_s", lambda _pids: next(spent))
    findings = Findings("x")
    await measure.load(Target(), JOB, Generator(most=1), findings)
    subject = findings.subject()
    assert subject.split == {"0": 4, "1": 6}
    assert subject.loads["connect"].cpu_us["supervisor"].median == pytest.approx(0.5e6 / 10)
    assert subject.loads["connect"].cpu_us["workers"].median == pytest.approx(4.0e6 / 10)


def rows(*pids: int | None, **more: Any) -> list[dict[str, Any]]:
    return [{"pid": pid, "state": "up", "standing": "up", **more} for pid in pids]


def test_everybody_is_up_when_all_run_and_are_in_rotation() -> None:
    assert all_up(rows(1, 2))
    assert all_up([{"standing": "up"}])
    assert not all_up([*rows(1), *rows(2, standing="down")])
    assert not all_up([*rows(1), *rows(2, state="starting")])
    assert not all_up(rows(1, standing=None))


def test_full_capacity_is_back_when_who_was_taken_away_is_replaced() -> None:
    kill, roll, block = (condition(kind, rows(1, 2)) for kind in ("kill", "roll", "block"))
    assert kill(rows(1, 3))
    assert not kill(rows(1, 2))
    assert not kill([*rows(1), *rows(3, standing="down")])
    assert roll(rows(3, 4))
    assert not roll(rows(3, 2))
    assert block(rows(1, 2))
    assert not block(rows(1, 2, standing="down"))
