"""The time of a stop is divided: proxies cut before workers, and workers before they are killed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.messages import DRAIN
from penstock_supervisor.children.plan import PROXY_RESTART, ChildPlan
from penstock_supervisor.children.stop_times import (
    in_words,
    proxy_finish_s,
    stop_message,
    worker_finish_s,
    worker_stop_s,
)
from penstock_worker.contract import STOP

PROXY = ChildPlan(
    role="proxy", service="", slot=0, argv=("p",), environment={}, runs_our_code=True,
    start_s=1.0, stop_s=30.0, service_stop_s={"web": 30.0, "api": 5.0}, restart=PROXY_RESTART,
)  # fmt: skip
WORKER = ChildPlan(
    role="worker", service="web", slot=0, argv=("w",), environment={}, runs_our_code=True,
    start_s=1.0, stop_s=30.0, restart=PROXY_RESTART,
)  # fmt: skip


@given(stop_s=st.floats(min_value=0.001, max_value=1e6))
def test_proxies_cut_first_then_workers_are_told_and_cut_and_then_killed(stop_s: float) -> None:
    assert 0 < proxy_finish_s(stop_s) < worker_stop_s(stop_s) < worker_finish_s(stop_s) < stop_s
    assert proxy_finish_s(stop_s) >= stop_s / 2 * 0.999


def test_with_the_default_time_most_of_it_is_for_what_is_served() -> None:
    assert proxy_finish_s(30.0) == pytest.approx(27.0)
    assert worker_finish_s(30.0) == pytest.approx(28.5)


def test_a_worker_is_told_when_it_cuts_and_when_it_is_killed() -> None:
    message = stop_message(WORKER, 30.0, at_once=False)
    assert message == {"cmd": STOP, "finish": worker_finish_s(30.0), "within": 30.0}


def test_a_proxy_is_told_the_time_of_each_service_and_exits_before_it_is_killed() -> None:
    message = stop_message(PROXY, 30.0, at_once=False)
    assert message["cmd"] == DRAIN
    assert message["finish"] == {"web": proxy_finish_s(30.0), "api": proxy_finish_s(5.0)}
    assert proxy_finish_s(30.0) < message["within"] < 30.0


def test_a_shorter_stop_shortens_the_time_of_every_service() -> None:
    message = stop_message(PROXY, 2.0, at_once=False)
    assert set(message["finish"].values()) == {proxy_finish_s(2.0)}
    assert message["within"] < 2.0


def test_at_once_nothing_is_waited_for() -> None:
    assert set(stop_message(PROXY, 1.0, at_once=True)["finish"].values()) == {0.0}
    assert stop_message(WORKER, 1.0, at_once=True)["finish"] == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5.97837, "6 s"), (29.96, "30 s"), (1.25, "1.2 s"), (3600.0, "3600 s"), (0.02, "0.02 s")],
)
def test_a_time_is_told_to_a_tenth_of_a_second(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
