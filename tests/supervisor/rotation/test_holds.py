"""A worker that two hold is picked again when both have let go of it."""

import pytest

from penstock_supervisor.rotation.holds import HoldCause, Holds

KEY = ("web", 5)


def test_who_is_held_twice_is_free_when_both_let_go() -> None:
    holds = Holds()
    assert not holds.has(KEY, HoldCause.COMPARED)
    holds.add(KEY, HoldCause.COMPARED, "compared")
    assert holds.has(KEY, HoldCause.COMPARED)
    holds.add(KEY, HoldCause.DOUBTED, "does not answer")
    assert (list(holds), holds.reason(KEY)) == ([KEY], "compared; does not answer")
    assert not holds.remove(KEY, HoldCause.DOUBTED)
    assert KEY in holds
    assert holds.remove(KEY, HoldCause.COMPARED)
    assert KEY not in holds
    assert holds.remove(KEY, HoldCause.COMPARED), "nobody held it"


def test_another_process_of_the_member_is_compared_and_not_doubted() -> None:
    holds = Holds()
    for cause in HoldCause:
        holds.add(KEY, cause, cause.name)
    holds.process_changed(KEY)
    assert (list(holds), holds.reason(KEY)) == ([KEY], HoldCause.COMPARED.name)
    holds.remove(KEY, HoldCause.COMPARED)
    holds.process_changed(KEY)
    assert list(holds) == []


def test_one_that_leaves_for_good_is_held_by_nobody() -> None:
    holds = Holds()
    for cause in HoldCause:
        holds.add(KEY, cause, "")
    holds.forget(KEY)
    with pytest.raises(KeyError):
        holds.reason(KEY)
