"""No connection in handoff is lost when a worker is killed, stopped or replaced.

Covers `runtime/scheduling`.
"""

import asyncio
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import (
    AT_ONCE,
    DEMO,
    PASSED,
    descriptors,
    failures,
    handoffs,
    pids,
    request_many,
    settled,
)

if TYPE_CHECKING:
    from tests.live.conftest import Penstock


def test_a_killed_worker_loses_only_connections_that_it_had_taken(
    penstock: "Penstock",
) -> None:
    run = penstock(app=DEMO, scheme="handoff", workers=3, access_log="off")
    victim = run.workers()[0]["pid"]
    before = descriptors(run)

    def kill(answered: int) -> None:
        if answered == 5_000:
            psutil.Process(victim).kill()

    answers = asyncio.run(request_many(run.address(), 10_000, meanwhile=kill))
    # What the dead worker had taken is gone with it, and nothing else: a window at the most.
    assert len(failures(answers)) <= AT_ONCE, Counter(failures(answers))
    settled(run, 3, {victim})
    run.until(lambda: run.metric("penstock_handoffs_in_flight") == 0)
    assert handoffs(run, "lost") == 0
    sent = handoffs(run, "accepted") + handoffs(run, "requeued")
    assert handoffs(run, "accepted") >= 10_000 - handoffs(run, "requeued")
    assert sent >= 10_000
    run.until(lambda: descriptors(run) <= before + Counter(supervisor=2, proxy=2, workers=6))


def test_connections_that_a_stopped_worker_does_not_take_go_to_another(
    penstock: "Penstock",
) -> None:
    run = penstock(
        app=DEMO, scheme="handoff", workers=2, timeouts={"connect": "500ms"}, access_log="off"
    )
    stopped = psutil.Process(run.workers()[0]["pid"])
    stopped.send_signal(signal.SIGSTOP)
    try:
        answers = asyncio.run(request_many(run.address(), 200))
        assert not failures(answers)
        assert not any("web/0" in answer for answer in answers)
        assert handoffs(run, "requeued") > 0
    finally:
        stopped.send_signal(signal.SIGCONT)
    run.until(lambda: all(worker["health"] == "up" for worker in run.workers()))
    assert handoffs(run, "lost") == 0
    answers = asyncio.run(request_many(run.address(), 100))
    assert not failures(answers)
    assert any("web/0" in answer for answer in answers)


@pytest.mark.parametrize("scheme", PASSED)
def test_a_connect_is_never_refused_while_the_worker_is_replaced(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=1)
    (victim,) = pids(run)
    psutil.Process(victim).kill()
    answers = asyncio.run(request_many(run.address(), AT_ONCE))
    assert not [answer for answer in answers if answer.startswith("connect:")]
    settled(run, 1, {victim})


def test_a_killed_proxy_costs_only_connections_that_it_had_not_handed_over(
    penstock: "Penstock",
) -> None:
    run = penstock(app=DEMO, scheme="handoff", workers=2, access_log="off")
    workers, proxy = pids(run), run.proxy

    def kill(answered: int) -> None:
        if answered == 500:
            proxy.kill()

    answers = asyncio.run(request_many(run.address(), 2_000, meanwhile=kill))
    assert not [answer for answer in answers if answer.startswith("connect:")]
    # Those that the proxy had accepted and not passed on go with it.
    assert len(failures(answers)) <= AT_ONCE
    assert pids(run) == workers
    assert not failures(asyncio.run(request_many(run.address(), 100)))


@pytest.mark.parametrize(
    ("schemes", "policy"),
    [
        (["handoff"], os.SCHED_BATCH),
        (["ports"], os.SCHED_OTHER),
        (["handoff", "ports"], os.SCHED_OTHER),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_only_a_proxy_that_relays_no_bytes_has_the_batch_scheduling_policy(
    penstock: "Penstock", schemes: list[str], policy: int
) -> None:
    run = penstock(services={name: {"app": DEMO, "workers": 1, "scheme": name} for name in schemes})
    assert [os.sched_getscheduler(proxy.pid) for proxy in run.proxies] == [policy]
    workers = [worker["pid"] for name in schemes for worker in run.workers(name)]
    assert {os.sched_getscheduler(pid) for pid in workers} == {os.SCHED_OTHER}
