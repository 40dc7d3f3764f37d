"""What a full proxy asks for is divided among the workers of that service that can answer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_proxy.messages import CROWDED
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.rotation.room import ask_for_room
from penstock_worker.contract import MAKE_ROOM


class Worker:
    def __init__(
        self, number: int, service: str = "web", *, state: State = State.UP, is_app: bool = True
    ) -> None:
        self.state, self.number = state, number
        self.plan = SimpleNamespace(service=service, runs_our_code=is_app)
        self.asked: list[int] = []

    def send(self, message: dict[str, Any]) -> None:
        assert message["cmd"] == MAKE_ROOM
        self.asked.append(message["count"])


def asked(workers: list[Worker], *, held: Any = (), **message: Any) -> list[list[int]]:
    ask_for_room(cast("Any", workers), {"cmd": CROWDED, **message}, held)
    return [worker.asked for worker in workers]


def web(count: int) -> list[Worker]:
    return [Worker(number) for number in range(count)]


@pytest.mark.parametrize(("count", "each"), [(1, 1), (2, 1), (3, 2), (8, 4), (1 << 40, 512)])
def test_each_worker_is_asked_for_its_part_and_for_one_at_least(count: int, each: int) -> None:
    assert asked(web(2), service="web", count=count) == [[each], [each]]


def test_who_cannot_answer_is_not_asked() -> None:
    workers = [
        *web(2),
        Worker(2, state=State.STARTING),
        Worker(3, is_app=False),
        Worker(4, "other"),
    ]
    held = {("web", 1): "it does not answer"}
    assert asked(workers, held=held, service="web", count=2) == [[2], [], [], [], []]


def test_without_workers_nobody_is_asked() -> None:
    assert asked([], service="web", count=2) == []


@pytest.mark.parametrize(
    "message",
    [{}, {"service": "web"}, {"service": ["web"], "count": 1}, {"service": "gone", "count": 1},
     *({"service": "web", "count": count} for count in (0, -1, "1", None, 1.5, [1]))],
)  # fmt: skip
def test_a_message_that_makes_no_sense_does_nothing(message: dict[str, Any]) -> None:
    assert asked(web(1), **message) == [[]]
