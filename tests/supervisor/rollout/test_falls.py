"""Only an ejection that the old version would not have had is held against the new one.

The rotation is a fake.
"""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_supervisor.rollout.falls import Falls

OLD, OTHER, NEW, NEXT = range(4)
"""Members."""

Rows = list[tuple[int, int, int]]


class Harness:
    """The rotation. Members that are in neither are up."""

    def __init__(self) -> None:
        self.started = {NEW}
        self.down: set[int] = set()
        self.ejected: dict[int, Rows] = {}
        self.falls = Falls(cast("Any", self), lambda _: self.started)

    def is_ejected(self, number: int, *rows: tuple[int, int, int]) -> None:
        self.ejected[number] = list(rows)
        self.falls.changed(child(number))

    def is_up(self, worker: Any) -> bool:
        return not self.has_fallen(worker)

    def has_fallen(self, worker: Any) -> bool:
        return worker.number in self.down or worker.number in self.ejected

    def ejection(self, worker: Any) -> Rows | None:
        return self.ejected.get(worker.number)


def child(number: int) -> Any:
    return SimpleNamespace(number=number, plan=SimpleNamespace(service="web"))


@pytest.mark.parametrize(
    ("rows", "has_fallen"),
    [
        pytest.param([(OLD, 0, 50), (OTHER, 0, 50), (NEW, 5, 5)], True, id="it alone fails"),
        pytest.param([(OLD, 0, 1), (NEW, 5, 5)], True, id="it alone fails, of a few"),
        pytest.param([(NEW, 5, 5)], True, id="nobody else was asked"),
        pytest.param([], True, id="nobody has counted"),
        pytest.param([(OLD, 5, 5), (OTHER, 4, 4), (NEW, 5, 5)], False, id="all fail"),
        pytest.param([(OLD, 9, 30), (OTHER, 10, 30), (NEW, 12, 30)], False, id="all fail at times"),
        pytest.param([(OLD, 3, 300), (OTHER, 2, 300), (NEW, 5, 5)], True, id="it fails much more"),
        pytest.param([(OLD, 0, 300), (NEW, 5, 5), (NEXT, 5, 5)], True, id="both new ones fail"),
    ],
)
def test_an_ejection_is_a_fall_if_the_old_version_fails_less(
    rows: Rows, *, has_fallen: bool
) -> None:
    harness = Harness()
    harness.started = {NEW, NEXT}
    harness.is_ejected(NEW, *rows)
    assert harness.falls.has_fallen(child(NEW)) is has_fallen
    assert harness.falls.is_excused(child(NEW)) is not has_fallen
    assert harness.falls.serves(child(NEW)) is not has_fallen


def test_who_fails_its_checks_has_fallen() -> None:
    harness = Harness()
    harness.down = {NEW}
    assert harness.falls.has_fallen(child(NEW))
    assert not harness.falls.serves(child(NEW))


def test_who_is_in_every_rotation_serves() -> None:
    harness = Harness()
    assert not harness.falls.has_fallen(child(NEW))
    assert not harness.falls.is_excused(child(NEW))
    assert harness.falls.serves(child(NEW))


def test_when_all_are_replaced_what_was_last_known_of_the_old_version_counts() -> None:
    harness = Harness()
    harness.is_ejected(OLD, (OLD, 5, 5), (OTHER, 4, 4), (NEW, 3, 3))
    harness.started = {NEW, NEXT}
    harness.is_ejected(NEW, (NEW, 5, 5), (NEXT, 4, 4))
    assert harness.falls.is_excused(child(NEW))
    harness.falls.forget()
    assert harness.falls.has_fallen(child(NEW))
