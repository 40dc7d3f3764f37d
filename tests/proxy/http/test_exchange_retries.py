"""A failed request goes to another worker, waits for one, or ends: each only where it may.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import json
from pathlib import Path

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.config import Retries
from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.runtime.cuts import cut_exchange
from penstock_worker.telemetry.access_log import open_log

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SORRY = b"HTTP/1.1 503 Sorry\r\nContent-Length: 3\r\nX-From: worker\r\n\r\nbad"
GARBAGE = b"SSH-2.0-OpenSSH\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
STATUSES = Retries(on=("connect", "reset", "503"))


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def succeeded_by_another_process(harness: Harness, slot: int = 0) -> None:
    pool = harness.service.pool
    pool.leave(slot)
    pool.join(slot)
    pool.checked(pool.member(slot), ok=True, now=harness.now, reason="")
    harness.loop.run()


def out_of_time(harness: Harness) -> bool:
    """The worker that has the one client's request does not finish in time. Was it cut?"""
    (connection,) = harness.service.clients
    assert isinstance(connection, ClientConnection)
    assert connection.exchange is not None
    return cut_exchange(connection, connection.exchange)


# -- another worker


def test_two_workers_execute_a_request_and_no_third(harness: Harness) -> None:
    harness.build(4, queue=100.0)
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    harness.worker.send(GARBAGE)
    assert status(client.received()) == 502
    assert harness.network.dialed == [1, 2]
    counters = harness.service.counters
    assert (counters.retries, counters.retries_exhausted) == (1, 1)
    assert (counters.errors["worker_reset"], counters.errors["bad_response"]) == (1, 1)


def test_a_worker_that_refuses_is_not_one_of_the_two(harness: Harness) -> None:
    harness.build(4)
    harness.network.refusing = {2, 3}
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    assert harness.network.dialed == [1, 2, 3, 4]
    harness.worker.send(OK)
    assert client.received() == OK


def test_if_all_others_refuse_the_client_hears_what_the_first_one_did(harness: Harness) -> None:
    harness.build(3)
    harness.network.refusing = {2, 3}
    client = harness.client()
    client.send(GET)
    harness.worker.send(GARBAGE)
    answer = client.received()
    assert status(answer) == 502
    assert answer.endswith(b"the worker's answer is not HTTP\n")


def test_a_lone_worker_that_answers_nonsense_is_502_at_once(harness: Harness) -> None:
    harness.build(queue=100.0)
    client = harness.client()
    client.send(GET)
    harness.worker.send(GARBAGE)
    assert status(client.received()) == 502
    assert harness.network.dialed == [1]


def test_a_lone_worker_that_breaks_off_and_lives_does_not_get_it_again(harness: Harness) -> None:
    harness.build(queue=100.0)
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    harness.advance(0.1)
    assert not client.received()
    harness.advance(0.25)
    assert status(client.received()) == 502
    assert harness.network.dialed == [1]


def test_the_successor_of_a_worker_that_died_is_another_worker(harness: Harness) -> None:
    harness.build(queue=100.0)
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    harness.service.pool.leave(0)
    harness.advance(50.0)
    assert not client.received()
    succeeded_by_another_process(harness)
    assert harness.network.dialed == [1, 1]
    harness.worker.reset()
    assert status(client.received()) == 502


def test_what_has_failed_waits_for_another_worker_that_is_full(harness: Harness) -> None:
    harness.build(2, queue=100.0, per_worker=1)
    first, second = harness.client(), harness.client()
    first.send(GET)
    second.send(GET)
    broken, busy = harness.network.wires
    broken.reset()
    harness.advance(1.0)
    assert not first.received()
    busy.send(OK)
    harness.worker.send(OK)
    assert (first.received(), second.received()) == (OK, OK)
    # Not over the kept connection: its end would look like another execution.
    assert harness.network.dialed == [1, 2, 2]


def test_what_all_workers_refuse_goes_round_again_within_the_queues_time(
    harness: Harness,
) -> None:
    harness.build(2, queue=2.0)
    harness.network.refusing = {1, 2}
    client = harness.client()
    client.send(POST)
    harness.advance(0.25)
    assert harness.network.dialed == [1, 2] * 2
    harness.network.refusing = set()
    harness.advance(0.25)
    harness.worker.send(OK)
    assert client.received() == OK


# -- the budget


@pytest.mark.parametrize("refusing", [True, False])
def test_a_retry_that_nobody_gets_is_not_paid_for(harness: Harness, *, refusing: bool) -> None:
    harness.build(1, retries=Retries(budget=0.0, min_per_second=1))
    budget = harness.service.retry_budget
    client = harness.client()
    for _ in range(20):
        if refusing:
            harness.network.refusing = {1}
        client.send(GET)
        if not refusing:
            harness.worker.send(GARBAGE)
        assert status(client.received()) == 502
    assert [budget.take(harness.now) for _ in range(11)] == [True] * 10 + [False]


def test_a_worker_that_was_picked_and_not_paid_for_has_room_for_another_request(
    harness: Harness,
) -> None:
    harness.build(2, per_worker=1, retries=Retries(budget=0.0, min_per_second=0))
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    assert status(client.received()) == 502
    assert harness.service.counters.retries_denied == 1
    assert not any(member.is_full for member in harness.service.pool.members)


# -- a worker's own error


def asks(harness: Harness, request: bytes = GET, workers: int = 2, **keys: Retries) -> Wire:
    harness.build(workers, queue=100.0, **{"retries": STATUSES, **keys})  # type: ignore[arg-type]
    client = harness.client()
    client.send(request)
    return client


@pytest.mark.parametrize("split", [1, 20, len(SORRY) - 2, len(SORRY)])
def test_an_error_is_discarded_if_another_worker_can_be_asked(harness: Harness, split: int) -> None:
    client = asks(harness)
    first = harness.worker
    first.send(SORRY[:split])
    first.send(SORRY[split:])
    assert first.lost
    harness.worker.send(OK)
    assert client.received() == OK
    counters = harness.service.counters
    assert (counters.errors["worker_503"], counters.retries) == (1, 1)
    assert harness.service.pool.members[0].total_failures == 1
    assert dict(counters.requests) == {("GET", 200, harness.service.pool.member(1)): 1}


def test_an_error_before_the_end_of_the_body_is_discarded_too(harness: Harness) -> None:
    client = asks(harness, PUT + b"a")
    harness.worker.send(SORRY)
    client.send(b"bc")
    assert harness.worker.received().endswith(b"\r\n\r\nabc")
    harness.worker.send(OK)
    assert client.received() == OK


@pytest.mark.parametrize(
    ("request_", "workers", "retries"),
    [
        (GET, 1, STATUSES),
        (POST, 2, STATUSES),
        (GET, 2, Retries(on=("502", "504", "reset"))),
        (GET, 2, Retries(on=("503",), attempts=1)),
        (GET, 2, Retries(on=("503",), budget=0.0, min_per_second=0)),
    ],
    ids=["no other worker", "a POST", "not named", "no other attempt", "no budget"],
)
def test_an_error_is_passed_on_as_it_is_if_no_other_worker_may_be_asked(
    harness: Harness, request_: bytes, workers: int, retries: Retries
) -> None:
    client = asks(harness, request_, workers, retries=retries)
    harness.worker.send(SORRY)
    assert client.received() == SORRY
    assert harness.network.dialed == [1]
    assert harness.service.counters.retries == 0
    client.send(GET)
    assert not client.lost


def test_if_the_other_worker_refuses_the_status_of_the_discarded_answer_stays(
    harness: Harness,
) -> None:
    harness.network.refusing = {2}
    client = asks(harness)
    harness.worker.send(SORRY)
    answer = client.received()
    assert status(answer) == 503
    assert answer.endswith(b"the worker answered 503\n")


def test_the_second_error_is_the_one_that_the_client_gets(harness: Harness) -> None:
    client = asks(harness, workers=3)
    harness.worker.send(SORRY)
    harness.worker.send(SORRY.replace(b"bad", b"two"))
    assert client.received() == SORRY.replace(b"bad", b"two")
    assert harness.network.dialed == [1, 2]


# -- what is counted and logged


def test_a_connection_that_was_upgraded_is_counted_until_it_ends(harness: Harness) -> None:
    client = harness.client()
    client.send(UPGRADE)
    harness.worker.send(SWITCH)
    counters = harness.service.counters
    assert (counters.upstreams, harness.fd_budget.upstreams) == (1, 1)
    harness.worker.reset()
    client.reset()
    assert (counters.upstreams, harness.fd_budget.upstreams) == (0, 0)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bytes_ahead_of_an_upgrade_are_logged_as_received(harness: Harness, tmp_path: Path) -> None:
    log = harness.service.error_log.access_log = open_log("web", str(tmp_path / "log"), "json")
    assert log is not None
    client = harness.client()
    client.send(UPGRADE + b"early")
    harness.worker.send(SWITCH)
    client.send(b"late")
    client.reset()
    log.close()
    assert [line["bytes_received"] for line in lines(tmp_path / "log")] == [9]


@pytest.mark.parametrize(("method", "size"), [(b"HEAD", 0), (b"GET", len(b"bad request\n"))])
def test_a_refused_request_logs_the_body_that_was_sent(
    harness: Harness, tmp_path: Path, method: bytes, size: int
) -> None:
    log = harness.service.error_log.access_log = open_log("web", str(tmp_path / "log"), "json")
    assert log is not None
    harness.client().send(method + b" / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    log.close()
    (line,) = lines(tmp_path / "log")
    assert (line["status"], line["bytes_sent"]) == (400, size)


def test_an_idle_time_is_not_negative_behind_a_wait_in_the_queue(harness: Harness) -> None:
    harness.build(1, queue=100.0, per_worker=1)
    first, second = harness.client(), harness.client()
    first.send(GET)
    second.send(GET)
    harness.advance(5.0)
    # It was idle for no time at all when the request that had waited for it was sent.
    harness.worker.send(OK)
    harness.now += 2.0
    harness.worker.reset()
    ((seconds, _),) = harness.service.connections._closes_after.values()
    assert seconds == 2.0
    second.reset()


def test_an_attempt_that_is_tried_again_is_not_called_by_a_status(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.build(2)
    harness.network.refusing = {1}
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    assert client.received() == OK
    (line,) = caplog.messages
    assert line == (
        "web/0: GET / from 192.0.2.1: cannot connect to a worker (Connection refused);"
        " tried again on web/1"
    )


# -- a worker that leaves, and does not finish in time


@pytest.mark.parametrize(
    ("accepts", "request_", "retries", "fault"),
    [
        (True, GET, Retries(on=("timeout",)), "stop_timeout"),
        (False, POST, Retries(), "connect_timeout"),
    ],
)
def test_another_worker_gets_what_a_leaving_one_has_not_answered_or_not_even_accepted(
    harness: Harness, *, accepts: bool, request_: bytes, retries: Retries, fault: str
) -> None:
    harness.build(2, retries=retries)
    harness.network.unresponsive = set() if accepts else {1}
    client = harness.client()
    client.send(request_)
    assert not out_of_time(harness)
    assert harness.network.dialed == [1, 2]
    harness.worker.send(OK)
    assert client.received() == OK
    assert harness.service.counters.errors[fault] == 1
    assert harness.service.pool.member(0).total_failures == 0


@pytest.mark.parametrize(
    ("request_", "retries"), [(POST, Retries(on=("timeout",))), (GET, Retries())]
)
def test_what_may_not_be_sent_again_is_503_and_the_client_stays(
    harness: Harness, request_: bytes, retries: Retries
) -> None:
    harness.build(2, retries=retries)
    client = harness.client()
    client.send(request_)
    assert out_of_time(harness)
    assert status(client.received()) == 503
    assert harness.network.dialed == [1]
    client.reset()


def test_an_answer_that_has_begun_is_cut(harness: Harness) -> None:
    harness.build(2)
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    assert out_of_time(harness)
    assert client.received() == OK[:-1]
    assert harness.network.dialed == [1]
