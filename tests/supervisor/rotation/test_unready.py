"""A worker that is not ready for too long is restarted, but not for what is everybody's fault."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.rotation.unready import Unready, WorkerFacts

AFTER_S, PANIC = 60.0, 0.25


def worker(slot: int, *, ready: bool, process: int = 1, alive: bool = True) -> WorkerFacts:
    return WorkerFacts(("web", slot), process, alive=alive, ready=ready, serves=ready)


def workers(ready: str, process: int = 1) -> list[WorkerFacts]:
    """ "+-+": the second of three is not ready."""
    return [worker(slot, ready=one == "+", process=process) for slot, one in enumerate(ready)]


def slots(unready: Unready, ready: str, now: float, panic: float = PANIC) -> list[int]:
    return [slot for (_, slot), _ in unready.overdue(workers(ready), AFTER_S, panic, now)]


def test_a_worker_is_overdue_after_its_time_without_a_break() -> None:
    unready = Unready()
    assert slots(unready, "+-+", 0.0) == []
    assert slots(unready, "+-+", 59.0) == []
    assert slots(unready, "+-+", 60.0) == [1]


def test_a_worker_that_alternates_begins_anew_each_time() -> None:
    unready = Unready()
    for now in range(0, 600, 50):
        assert slots(unready, "+-+", float(now)) == []
        assert slots(unready, "+++", now + 49.0) == []


def test_the_longest_is_the_first() -> None:
    unready = Unready()
    slots(unready, "++-+", 0.0)
    slots(unready, "+--+", 10.0)
    assert slots(unready, "+--+", 80.0) == [2, 1]


def test_when_all_fail_nobody_is_restarted_and_all_have_their_time_again() -> None:
    unready = Unready()
    for now in range(300):
        assert slots(unready, "----", float(now)) == []
    # They come back one by one.
    assert slots(unready, "+---", 300.0) == []
    assert slots(unready, "++--", 359.0) == []
    assert slots(unready, "++--", 360.0) == [2, 3]


def test_when_too_few_serve_nobody_is_restarted() -> None:
    unready = Unready()
    for now in (0.0, 100.0):
        assert slots(unready, "+-------", now) == []
    for now in (0.0, 100.0):
        assert slots(unready, "+--------", now, panic=0.0) == ([] if not now else list(range(1, 9)))


def test_without_a_panic_share_the_last_is_spared_all_the_same() -> None:
    unready = Unready()
    for now in (0.0, 100.0):
        assert slots(unready, "--", now, panic=0.0) == []
        assert slots(unready, "-", now, panic=0.0) == []


def test_another_process_begins_anew() -> None:
    unready = Unready()
    unready.overdue(workers("+-"), AFTER_S, PANIC, 0.0)
    assert unready.overdue(workers("+-", process=2), AFTER_S, PANIC, 60.0) == []


def test_one_that_hangs_is_judged_elsewhere() -> None:
    unready = Unready()
    for now in (0.0, 100.0):
        facts = [worker(0, ready=True), worker(1, ready=False, alive=False)]
        assert unready.overdue(facts, AFTER_S, PANIC, now) == []


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    unready = Unready()
    slots(unready, "+-", 0.0)
    unready.begin_again()
    assert slots(unready, "+-", 1000.0) == []


def test_who_is_gone_is_forgotten() -> None:
    unready = Unready()
    slots(unready, "+--", 0.0)
    unready.keep({("web", 0), ("web", 1)})
    assert slots(unready, "+--", 60.0) == [1]


@given(st.lists(st.text("+-", min_size=4, max_size=4), min_size=1, max_size=200))
def test_whoever_is_restarted_others_serve(seconds: list[str]) -> None:
    unready = Unready()
    for now, ready in enumerate(seconds):
        for slot, since_s in unready.overdue(workers(ready), 5.0, PANIC, float(now)):
            assert ready[slot[1]] == "-"
            assert "+" in ready
            assert since_s >= 5.0
