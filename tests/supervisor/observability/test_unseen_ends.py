"""The end of a process whose last numbers nobody has seen is kept, and no other one."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock_supervisor.observability.unseen_ends import KEPT, UnseenEnds


def child(end: str = "SIGKILL", scheme: str = "shared", **changes: Any) -> Any:
    values = {
        "role": "worker", "runs_our_code": True, "awaits_accept": False, "scheme": scheme,
        **changes,
    }  # fmt: skip
    ready_at, stats = values.pop("ready_at", 1.0), values.pop("stats", {"seq": 4})
    return SimpleNamespace(
        name="proxy/0" if values["role"] == "proxy" else "web/0",
        plan=SimpleNamespace(**values),
        running=SimpleNamespace(ready_at=ready_at),
        stats=stats,
        starts=SimpleNamespace(last_exit=end),
        history=SimpleNamespace(last_exit="status 0"),
    )


def kept(ended: Any, *, never_picked: bool = False) -> list[str]:
    ends = UnseenEnds()
    ends.ended(ended, never_picked=never_picked)
    return [end.text for end in ends.all()]


@pytest.mark.parametrize("scheme", ["handoff", "shared", "reuseport"])
def test_one_that_counts_and_has_had_no_last_word_is_named(scheme: str) -> None:
    assert kept(child(scheme=scheme)) == ["web/0 was killed by SIGKILL"]
    assert kept(child("status 7", scheme, stats={})) == ["web/0 exited with status 7"]
    assert kept(child(role="proxy", scheme="")) == ["proxy/0 was killed by SIGKILL"]


@pytest.mark.parametrize(
    "ended",
    [
        child("status 0", stats={"seq": None, "metrics": {}}),
        child(scheme="ports"),
        child(runs_our_code=False),
        child(ready_at=None),
        child(awaits_accept=True),
    ],
)
def test_who_told_all_or_counts_nothing_or_had_nobody_is_not(ended: Any) -> None:
    assert kept(ended) == []


def test_a_worker_that_was_never_picked_had_nobody_where_it_does_not_accept_itself() -> None:
    assert kept(child(scheme="handoff"), never_picked=True) == []
    assert kept(child(), never_picked=True) != []


def test_however_many_end_the_last_ones_are_kept() -> None:
    ends = UnseenEnds()
    for _ in range(3 * KEPT):
        ends.ended(child(), never_picked=False)
    assert (len(ends.all()), ends.all()[-1].number) == (KEPT, 3 * KEPT)
