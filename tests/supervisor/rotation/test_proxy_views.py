"""A worker is in the rotation when every proxy reports it up, in whatever order they report."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.rotation.proxy_views import UP, ProxyViews, is_recent

WEB = ("web", 0)
STATES = ("up", "down", "ejected", "checking")


def reported(*views: str) -> ProxyViews:
    """One view a proxy; "" if the proxy has not reported."""
    result = ProxyViews()
    for proxy, state in enumerate(views):
        if state:
            result.report(WEB, proxy, state)
    return result


def test_with_one_proxy_its_view_is_the_result() -> None:
    assert reported("up").combined(WEB, [0]) == UP
    assert reported("down").combined(WEB, [0]) == "down"


def test_a_worker_is_up_when_it_is_up_at_every_proxy() -> None:
    assert reported("up", "up").combined(WEB, [0, 1]) == UP
    assert reported("up", "ejected").combined(WEB, [0, 1]) == "ejected"
    assert reported("down", "up").combined(WEB, [0, 1]) == "down"


def test_a_proxy_that_has_not_reported_is_waited_for() -> None:
    assert reported("up", "").combined(WEB, [0, 1]) == ""
    assert reported("", "down").combined(WEB, [0, 1]) == "down"


def test_the_view_of_a_proxy_that_does_not_count_is_ignored() -> None:
    assert reported("up", "down").combined(WEB, [0]) == UP
    assert reported("up").combined(WEB, []) == ""


def test_a_new_proxy_has_the_views_that_it_was_sent_and_no_others() -> None:
    views = reported("up", "up")
    views.report(("web", 1), 1, "down")
    views.proxy_started(1, [("web", 1)])
    assert views.combined(WEB, [0, 1]) == ""
    assert views.combined(("web", 1), [1]) == UP
    assert views.combined(WEB, [0]) == UP, "the other proxy keeps its view"


def test_no_view_is_kept_when_the_slot_gets_another_process() -> None:
    views = reported("up", "down")
    views.forget(WEB)
    assert not views.is_up_anywhere(WEB)
    assert views.combined(WEB, [0, 1]) == ""


def test_a_service_is_up_at_a_proxy_that_has_a_worker_for_it() -> None:
    views = reported("up", "down")
    views.report(("api", 3), 1, "up")
    assert views.services_up_at(0) == {"web"}
    assert views.services_up_at(1) == {"api"}
    assert views.is_up_anywhere(WEB)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATES))))
def test_only_the_last_report_of_each_proxy_counts(reports: list[tuple[int, str]]) -> None:
    views, last = ProxyViews(), dict[int, str]()
    for proxy, state in reports:
        views.report(WEB, proxy, state)
        last[proxy] = state
        combined = views.combined(WEB, list(last))
        assert (combined == UP) == (set(last.values()) == {UP})
        assert combined in last.values()


def test_of_an_ejected_worker_it_is_said_that_it_was_ejected_and_why() -> None:
    views = ProxyViews()
    views.report(WEB, 0, "ejected", "for 10 s, after 5 failures in a row")
    assert views.reason(WEB) == "its requests failed (5 failures in a row), so it was ejected"
    views.report(WEB, 0, "down", "failed 3 checks in a row: HTTP 503")
    assert views.reason(WEB) == "failed 3 checks in a row: HTTP 503"


def test_an_ejection_is_told_with_what_everybody_had_where_it_is_ejected() -> None:
    views = reported("up", "", "")
    views.report(WEB, 1, "ejected", "for 10 s", [(0, 5, 5)])
    views.report(WEB, 2, "ejected", "for 10 s", [(0, 6, 9)])
    assert views.ejection(WEB, [0, 1, 2]) == [(0, 5, 5), (0, 6, 9)]
    assert views.ejection(WEB, [0]) is None
    views.report(WEB, 2, UP)
    assert views.ejection(WEB, [0, 1, 2]) == [(0, 5, 5)]
    views.report(WEB, 2, "down")
    assert views.ejection(WEB, [0, 1, 2]) is None
    views.forget(WEB)
    assert views.ejection(WEB, [0, 1, 2]) is None


@pytest.mark.parametrize("value", [None, 5, [5], [[1, 2]], [[1, 2, "3"]], [[1, 2, None]]])
def test_nonsense_is_not_what_everybody_had(value: object) -> None:
    assert not is_recent(value)


def test_rows_of_three_numbers_are_what_everybody_had() -> None:
    assert is_recent([[0, 5, 5], [1, 0, 20]])


@pytest.mark.parametrize("state", ["up", "ejected"])
def test_one_that_was_ready_for_a_moment_between_two_looks_was_ready(state: str) -> None:
    views = reported("down", "down")
    assert not views.take_ready_anywhere(WEB)
    views.report(WEB, 1, state)
    views.report(WEB, 1, "down")
    assert views.take_ready_anywhere(WEB)
    assert not views.take_ready_anywhere(WEB), "only once"
    views.report(WEB, 1, state)
    views.forget(WEB)
    assert not views.take_ready_anywhere(WEB), "it is another process"
