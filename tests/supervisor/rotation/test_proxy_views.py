"""A worker is in the rotation when every proxy says so, whatever each said, in any order."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.rotation.proxy_views import UP, ProxyViews

WEB = ("web", 0)
STATES = ("up", "down", "ejected", "checking")


def said(*views: str) -> ProxyViews:
    """One proxy after the other; an empty one has not said anything."""
    made = ProxyViews()
    for proxy, state in enumerate(views):
        if state:
            made.report(WEB, proxy, state)
    return made


def test_one_proxy_is_enough_where_there_is_one() -> None:
    assert said("up").merged(WEB, [0]) == UP
    assert said("down").merged(WEB, [0]) == "down"


def test_it_is_up_when_it_is_for_all() -> None:
    assert said("up", "up").merged(WEB, [0, 1]) == UP
    assert said("up", "ejected").merged(WEB, [0, 1]) == "ejected"
    assert said("down", "up").merged(WEB, [0, 1]) == "down"


def test_one_that_has_not_said_anything_is_waited_for() -> None:
    assert said("up", "").merged(WEB, [0, 1]) == ""
    assert said("", "down").merged(WEB, [0, 1]) == "down"


def test_a_proxy_that_does_not_count_is_not_asked() -> None:
    assert said("up", "down").merged(WEB, [0]) == UP
    assert said("up").merged(WEB, []) == ""


def test_a_new_proxy_believes_what_it_was_told_and_nothing_else() -> None:
    views = said("up", "up")
    views.report(("web", 1), 1, "down")
    views.begin(1, [("web", 1)])
    assert views.merged(WEB, [0, 1]) == ""
    assert views.merged(("web", 1), [1]) == UP
    assert views.merged(WEB, [0]) == UP, "the other one is not asked again"


def test_of_another_process_in_the_slot_nothing_is_known() -> None:
    views = said("up", "down")
    views.forget(WEB)
    assert not views.is_up_anywhere(WEB)
    assert views.merged(WEB, [0, 1]) == ""


def test_a_service_is_served_by_a_proxy_that_has_anybody() -> None:
    views = said("up", "down")
    views.report(("api", 3), 1, "up")
    assert views.serving(0) == {"web"}
    assert views.serving(1) == {"api"}
    assert views.is_up_anywhere(WEB)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATES))))
def test_only_the_last_word_of_each_counts(words: list[tuple[int, str]]) -> None:
    views, last = ProxyViews(), dict[int, str]()
    for proxy, state in words:
        views.report(WEB, proxy, state)
        last[proxy] = state
        merged = views.merged(WEB, list(last))
        assert (merged == UP) == (set(last.values()) == {UP})
        assert merged in last.values()
