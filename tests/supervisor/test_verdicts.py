"""A worker is in the rotation when every front says so, whatever each said, in any order."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.verdicts import UP, Verdicts

WEB = ("web", 0)
STATES = ("up", "down", "ejected", "checking")


def said(*verdicts: str) -> Verdicts:
    """One front after the other; an empty one has not said anything."""
    made = Verdicts()
    for front, state in enumerate(verdicts):
        if state:
            made.say(WEB, front, state)
    return made


def test_one_front_is_enough_where_there_is_one() -> None:
    assert said("up").merged(WEB, [0]) == UP
    assert said("down").merged(WEB, [0]) == "down"


def test_it_is_up_when_it_is_for_all() -> None:
    assert said("up", "up").merged(WEB, [0, 1]) == UP
    assert said("up", "ejected").merged(WEB, [0, 1]) == "ejected"
    assert said("down", "up").merged(WEB, [0, 1]) == "down"


def test_one_that_has_not_said_anything_is_waited_for() -> None:
    assert said("up", "").merged(WEB, [0, 1]) == ""
    assert said("", "down").merged(WEB, [0, 1]) == "down"


def test_a_front_that_does_not_count_is_not_asked() -> None:
    assert said("up", "down").merged(WEB, [0]) == UP
    assert said("up").merged(WEB, []) == ""


def test_a_new_front_believes_what_it_was_told_and_nothing_else() -> None:
    verdicts = said("up", "up")
    verdicts.say(("web", 1), 1, "down")
    verdicts.begin(1, [("web", 1)])
    assert verdicts.merged(WEB, [0, 1]) == ""
    assert verdicts.merged(("web", 1), [1]) == UP
    assert verdicts.merged(WEB, [0]) == UP, "the other one is not asked again"


def test_of_another_process_in_the_slot_nothing_is_known() -> None:
    verdicts = said("up", "down")
    verdicts.forget(WEB)
    assert not verdicts.is_up_anywhere(WEB)
    assert verdicts.merged(WEB, [0, 1]) == ""


def test_a_service_is_served_by_a_front_that_has_anybody() -> None:
    verdicts = said("up", "down")
    verdicts.say(("api", 3), 1, "up")
    assert verdicts.serving(0) == {"web"}
    assert verdicts.serving(1) == {"api"}
    assert verdicts.is_up_anywhere(WEB)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATES))))
def test_only_the_last_word_of_each_counts(words: list[tuple[int, str]]) -> None:
    verdicts, last = Verdicts(), dict[int, str]()
    for front, state in words:
        verdicts.say(WEB, front, state)
        last[front] = state
        merged = verdicts.merged(WEB, list(last))
        assert (merged == UP) == (set(last.values()) == {UP})
        assert merged in last.values()
