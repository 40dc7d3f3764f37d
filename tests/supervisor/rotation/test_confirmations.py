"""A member is confirmed when every proxy that decides has answered the last question about it."""

import pytest

from penstock_supervisor.rotation.confirmations import Confirmations

WEB, API = ("web", 5), ("api", 6)


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def asked(calls: list[str]) -> tuple[Confirmations, int]:
    confirmations = Confirmations()
    return confirmations, confirmations.begin(WEB, lambda: calls.append("answered"))


def test_all_that_decide_have_to_answer(asked: tuple[Confirmations, int], calls: list[str]) -> None:
    confirmations, number = asked
    assert not confirmations.has_all(WEB, [0, 1])
    confirmations.answered(WEB, number, by=0)
    assert not confirmations.has_all(WEB, [0, 1])
    confirmations.answered(WEB, number, by=1)
    assert confirmations.has_all(WEB, [0, 1])
    assert calls == ["answered"] * 2


def test_where_nobody_decides_nothing_is_confirmed(asked: tuple[Confirmations, int]) -> None:
    assert not asked[0].has_all(WEB, [])


@pytest.mark.parametrize("number", [0, 2, "1", None, [1], {"seq": 1}])
def test_an_answer_to_another_question_changes_nothing(
    asked: tuple[Confirmations, int], calls: list[str], number: object
) -> None:
    confirmations, _ = asked
    confirmations.answered(WEB, number, by=0)
    assert not confirmations.has_all(WEB, [0])
    assert not calls


def test_nobody_has_answered_a_new_question(asked: tuple[Confirmations, int]) -> None:
    confirmations, first = asked
    confirmations.answered(WEB, first, by=0)
    second = confirmations.begin(WEB, lambda: None)
    confirmations.answered(WEB, first, by=0)
    assert not confirmations.has_all(WEB, [0])
    confirmations.answered(WEB, second, by=0)
    assert confirmations.has_all(WEB, [0])


def test_a_proxy_that_has_started_is_asked_whatever_the_one_before_it_has_said(
    asked: tuple[Confirmations, int],
) -> None:
    confirmations, number = asked
    confirmations.answered(WEB, number, by=0)
    confirmations.answered(WEB, number, by=1)
    assert list(confirmations.proxy_started(0)) == [(WEB, number)]
    assert not confirmations.has_all(WEB, [0, 1])
    assert confirmations.has_all(WEB, [1])


def test_nothing_is_asked_about_one_that_is_gone(asked: tuple[Confirmations, int]) -> None:
    confirmations, number = asked
    confirmations.forget(WEB)
    confirmations.forget(API)
    confirmations.answered(WEB, number, by=0)
    assert not confirmations.has_all(WEB, [0])
    assert list(confirmations.proxy_started(0)) == []


def test_what_was_wrong_is_known_until_a_better_answer(asked: tuple[Confirmations, int]) -> None:
    confirmations, number = asked
    assert confirmations.is_open(WEB, [0, 1])
    confirmations.answered(WEB, number, "HTTP 404", by=1)
    assert confirmations.why_denied(WEB) == "HTTP 404"
    for proxy in (0, 1):
        confirmations.answered(WEB, number, by=proxy)
    assert not confirmations.why_denied(WEB)
    assert not confirmations.is_open(WEB, [0, 1])
    assert not confirmations.is_open(API, [0, 1]), "nobody was asked"


def test_what_a_proxy_said_that_has_ended_is_not_known_any_more(
    asked: tuple[Confirmations, int],
) -> None:
    confirmations, number = asked
    confirmations.answered(WEB, number, "HTTP 404", by=0)
    assert list(confirmations.proxy_started(0)) == [(WEB, number)]
    assert not confirmations.why_denied(WEB)


def test_who_has_asked_before_is_told_as_well(
    asked: tuple[Confirmations, int], calls: list[str]
) -> None:
    confirmations, _ = asked
    number = confirmations.begin(WEB, lambda: calls.append("again"))
    confirmations.answered(WEB, number, by=0)
    assert calls == ["answered", "again"]
