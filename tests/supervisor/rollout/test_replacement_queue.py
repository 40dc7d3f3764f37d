"""Of each service one worker at a time is replaced, and who hangs comes before who retires."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.rollout.replacement_queue import (
    FIRST_PAUSE_S,
    FREE_REPEATS,
    MAX_PAUSE_S,
    REASONS,
    SOON_S,
    Replacement,
    ReplacementQueue,
)

WEB, OTHER, API = ("web", 0), ("web", 1), ("api", 0)


def anywhere(_: Slot) -> bool:
    return True


def begin(
    queue: ReplacementQueue, now: float = 0.0, is_free: Callable[[Slot], bool] = anywhere
) -> Replacement:
    (replacement,) = queue.due(now, is_free)
    return replacement


def test_the_next_one_of_a_service_waits_until_the_one_before_is_settled() -> None:
    queue = ReplacementQueue()
    for slot in (WEB, OTHER, API):
        assert queue.request(slot, "retire", "had enough")
    first, api = queue.due(0.0, anywhere)
    assert (first.slot, api.slot) == (WEB, API)
    assert queue.due(0.0, anywhere) == []
    assert queue.settled(first, 1.0, ok=True) is None
    assert begin(queue, 1.0).slot == OTHER


def test_the_most_urgent_is_the_first_and_equals_keep_their_order() -> None:
    queue = ReplacementQueue()
    for slot, reason in enumerate(reversed(REASONS)):
        queue.request(("web", slot), reason, "")
        queue.request(("web", slot + 10), reason, "")
    order = []
    for _ in range(2 * len(REASONS)):
        replacement = begin(queue)
        order.append(replacement.slot[1])
        queue.settled(replacement, 0.0, ok=True)
    assert order == [4, 14, 3, 13, 2, 12, 1, 11, 0, 10]


def test_several_reasons_for_a_worker_are_one_replacement() -> None:
    queue = ReplacementQueue()
    assert queue.request(WEB, "retire", "had enough")
    assert not queue.request(WEB, "retire", "had enough")
    assert queue.request(WEB, "liveness", "silent")
    replacement = begin(queue)
    assert (replacement.reason, replacement.why) == ("liveness", "silent")
    queue.settled(replacement, 0.0, ok=True)
    assert queue.due(0.0, anywhere) == []


def test_a_reason_that_is_gone_is_withdrawn_and_others_stay() -> None:
    queue = ReplacementQueue()
    queue.request(WEB, "liveness", "silent")
    queue.request(WEB, "retire", "had enough")
    queue.withdraw(WEB, "liveness", "unhealthy")
    assert queue.wants(WEB, "retire")
    queue.withdraw(WEB, "retire")
    assert queue.due(0.0, anywhere) == []


def test_what_failed_is_tried_again_after_a_pause_that_doubles() -> None:
    queue = ReplacementQueue()
    queue.request(WEB, "retire", "had enough")
    now, pauses = 0.0, []
    for _ in range(12):
        pause_s = queue.settled(begin(queue, now), now, ok=False)
        assert pause_s is not None
        pauses.append(pause_s)
        assert queue.due(now + pause_s - 0.1, anywhere) == []
        now += pause_s
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S
    queue.settled(begin(queue, now), now, ok=True)
    queue.request(OTHER, "retire", "had enough")
    assert queue.settled(begin(queue, now), now, ok=False) == FIRST_PAUSE_S


def test_a_roll_out_that_fails_is_not_tried_again_and_waits_for_no_pause() -> None:
    queue = ReplacementQueue()
    queue.request(WEB, "reload", "")
    assert queue.settled(begin(queue), 0.0, ok=False) is None
    assert not queue.wants(WEB, "reload")
    queue.request(WEB, "retire", "had enough")
    queue.settled(begin(queue), 0.0, ok=False)
    queue.request(WEB, "reload", "")
    queue.settled(begin(queue, 1.0), 1.0, ok=False)
    assert not queue.wants(WEB, "reload")
    assert queue.wants(WEB, "retire")


def test_a_worker_that_an_earlier_replacement_still_occupies_waits() -> None:
    queue = ReplacementQueue()
    queue.request(WEB, "liveness", "silent")
    queue.request(OTHER, "retire", "had enough")
    assert begin(queue, is_free=lambda slot: slot != WEB).slot == OTHER


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(REASONS), st.integers(0, 3))))
def test_never_two_of_a_service_and_none_is_forgotten(
    steps: list[tuple[int, str, int]],
) -> None:
    queue, now, wanted = ReplacementQueue(), 0.0, set[Slot]()
    for number, reason, what in steps:
        now += 1.0
        slot = ("web", number)
        active = next(iter(queue.active("web")), None)
        if what == 0:
            queue.request(slot, reason, "why")  # type: ignore[arg-type]
            wanted.add(slot)
        elif what == 1 and active is not None:
            queue.settled(active, now, ok=True)
            if not any(queue.wants(active.slot, one) for one in REASONS):
                wanted.discard(active.slot)
        else:
            begun = queue.due(now, anywhere)
            assert len(begun) <= (active is None)
        for one in wanted:
            assert any(queue.wants(one, reason) for reason in REASONS)


def ask_as_soon_as_replaced(queue: ReplacementQueue, now: float, times: int) -> float:
    """A worker that wants to be replaced whenever it comes; returns when it came last."""
    for _ in range(times):
        queue.request(WEB, "retire", "had enough")
        queue.settled(begin(queue, now), now, ok=True)
        now += 1.0
    return now - 1.0


def test_a_worker_that_asks_whenever_it_comes_waits_longer_and_longer() -> None:
    queue = ReplacementQueue()
    now = ask_as_soon_as_replaced(queue, 0.0, 1 + FREE_REPEATS)
    assert queue.take_delayed() == []
    for wait_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        queue.request(WEB, "retire", "had enough")
        assert queue.due(now, anywhere) == []
        ((delayed, told_s),) = queue.take_delayed()
        assert (delayed.slot, told_s) == (WEB, wait_s)
        assert queue.due(now + wait_s - 0.1, anywhere) == []
        assert queue.take_delayed() == [], "said once"
        now += wait_s
        queue.settled(begin(queue, now), now, ok=True)


def test_one_that_has_worked_for_a_while_and_a_roll_out_do_not_wait() -> None:
    queue = ReplacementQueue()
    now = ask_as_soon_as_replaced(queue, 0.0, 1 + FREE_REPEATS)
    queue.request(WEB, "retire", "had enough")
    assert queue.due(now, anywhere) == []
    queue.request(WEB, "reload", "somebody wants it")
    queue.settled(begin(queue, now), now, ok=True)
    queue.request(WEB, "retire", "had enough")
    assert begin(queue, now + SOON_S).slot == WEB
