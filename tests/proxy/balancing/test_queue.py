"""Waiters are served in order, within limits of number and time, and else get a fault.

The limit per worker of `balancing/pool`, and both together in a whole service, are tested too.
"""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.balancing.pool import Pool
from penstock_proxy.balancing.queue import Queue, no_worker_fault, retry_after
from penstock_proxy.config import Balance, Ejection, Health, Limits, Target
from penstock_proxy.errors import NO_DESCRIPTORS, NO_WORKER, QUEUE_FULL, QUEUE_TIMEOUT, Fault

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


# -- the queue


def nothing() -> None:
    """What serves a waiter whose turn never comes."""


def test_waiters_are_served_in_order_whichever_are_removed() -> None:
    queue = Queue(Limits(), 2.0)
    served: list[str] = []
    for who in "abcd":
        assert queue.add(who, partial(served.append, who), 10.0, 11.5, 1) == 0.5
    queue.remove("b")
    queue.remove("b")
    assert (len(queue), "b" in queue, list(queue)) == (3, False, ["a", "c", "d"])
    while queue:
        queue.pop_first()()
    assert served == ["a", "c", "d"]


def test_the_queue_is_bounded_by_number_and_time() -> None:
    queue = Queue(Limits(queue=3), 2.0)
    assert queue.add(0, nothing, 0.0, 2.0, 0) is NO_WORKER
    assert queue.add(0, nothing, 0.0, 2.0, 1) is QUEUE_TIMEOUT
    assert [isinstance(queue.add(who, nothing, 0.0, 0.0, 1), float) for who in range(3)] == [
        True
    ] * 3
    assert queue.add(3, nothing, 0.0, 0.0, 1) is QUEUE_FULL
    queue.remove(1)
    assert queue.add(3, nothing, 0.0, 0.0, 1) == 2.0


@pytest.mark.parametrize(("workers", "room"), [(0, 2), (1, 2), (2, 4), (9, 5)])
def test_the_queues_limit_grows_with_the_workers(workers: int, room: int) -> None:
    queue = Queue(Limits(queue=5, queue_per_worker=2), 2.0)
    entered = [queue.add(who, nothing, 0.0, 0.0, workers) for who in range(9)]
    assert entered == [2.0] * room + [QUEUE_FULL] * (9 - room)


@pytest.mark.parametrize(
    ("fault", "back", "seconds"),
    [
        (NO_WORKER, [], 1),
        (NO_DESCRIPTORS, [], 1),
        (QUEUE_FULL, [], 2),
        (QUEUE_TIMEOUT, [], 2),
        (QUEUE_FULL, [100.5], 1),
        (QUEUE_FULL, [109.0], 2),
        (NO_WORKER, [109.0, 104.2], 5),
        (NO_WORKER, [99.0], 1),
    ],
)
def test_retry_after_is_the_time_until_a_worker_may_be_free(
    fault: Fault, back: list[float], seconds: int
) -> None:
    assert retry_after(fault, 100.0, back, 1.5) == seconds


def test_without_workers_the_fault_is_no_worker_and_not_a_time_out() -> None:
    assert (no_worker_fault(0), no_worker_fault(1)) == (NO_WORKER, QUEUE_TIMEOUT)


# -- the limit of one worker


@pytest.mark.parametrize(
    "balance", ["round_robin", "least_connections", "power_of_two", "client_hash", "random"]
)
@given(data=st.data())
def test_no_policy_exceeds_the_limit_per_worker(balance: Balance, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, 4))
    limit = data.draw(st.integers(1, 3))
    pool = Pool(
        [
            Target(
                member=n,
                slot=n,
                address=f"127.0.0.1:{n + 1}",
                joined=True,
                up=True,
                weight=1 + n % 3,
            )
            for n in range(workers)
        ],
        balance=balance,
        health=Health(),
        ejection=Ejection(),
        random=lambda: data.draw(st.floats(0, 1, exclude_max=True)),
        on_change=lambda *_: None,
        per_worker=limit,
    )
    for client in data.draw(st.lists(st.integers(-8, 8), max_size=40)):
        if client >= 0:
            member = pool.pick(str(client))
            assert (member is None) == all(m.active == limit for m in pool.members)
            if member is not None:
                member.active += 1
        else:
            member = pool.members[client % workers]
            if member.active:
                full = member.active == limit
                member.active -= 1
                assert pool.released(member) == full
        assert all(0 <= m.active <= limit for m in pool.members)
        assert pool.available == sum(m.active < limit for m in pool.members)


def asked(harness: Harness) -> list[bytes]:
    """What workers have got, by connection."""
    return [
        bytes(wire.received()).split(b" ", 2)[1] for wire in harness.network.wires if wire.written
    ]


def connect_clients(harness: Harness, count: int) -> list[Wire]:
    clients = [harness.client() for _ in range(count)]
    for number, client in enumerate(clients):
        client.send(GET % number)
    return clients


def test_requests_beyond_the_workers_limit_wait_in_order(harness: Harness) -> None:
    harness.build(2, queue=2.0, per_worker=1)
    clients = connect_clients(harness, 5)
    assert asked(harness) == [b"/0", b"/1"]
    assert [member.active for member in harness.service.pool.members] == [1, 1]
    one, other = harness.network.wires
    other.send(OK)
    assert asked(harness) == [b"/2"]
    other.send(OK)
    one.send(OK)
    assert sorted(asked(harness)) == [b"/3", b"/4"]
    assert len(harness.network.wires) == 2, "the next one gets the idle connection"
    one.send(OK)
    other.send(OK)
    assert [status(client.received()) for client in clients] == [200] * 5


def test_a_late_request_does_not_overtake(harness: Harness) -> None:
    harness.build(1, queue=2.0, per_worker=1)
    first, waiting, late = (harness.client() for _ in range(3))
    first.send(GET % 0)
    waiting.send(GET % 1)
    # The answer, and before the loop's next turn two more requests.
    harness.worker.received()
    harness.worker.deliver_in_turn(OK)
    first.deliver_in_turn(GET % 2)
    late.deliver_in_turn(GET % 3)
    harness.loop.run()
    for number in (b"1", b"2", b"3"):
        assert asked(harness) == [b"/" + number]
        harness.worker.send(OK)


def test_a_client_that_disconnects_is_never_served(harness: Harness) -> None:
    harness.build(1, queue=2.0, per_worker=1)
    clients = connect_clients(harness, 3)
    clients[1].reset()
    harness.worker.received()
    harness.worker.send(OK)
    assert asked(harness) == [b"/2"]
    harness.worker.send(OK)


def test_a_time_out_or_a_full_queue_is_a_503_with_retry_after(
    harness: Harness,
) -> None:
    harness.build(1, queue=2.5, per_worker=1, queue_per_worker=1)
    served, waiting, refused = connect_clients(harness, 3)
    answer = refused.received()
    assert status(answer) == 503
    assert b"\r\nRetry-After: 3\r\n" in answer
    assert not refused.lost
    harness.advance(3.0)
    answer = waiting.received()
    assert status(answer) == 503
    assert b"no worker was free in time" in answer
    assert b"\r\nRetry-After: 3\r\n" in answer
    rejected = harness.service.counters.rejected
    assert (rejected["queue_full"], rejected["queue_timeout"], rejected["no_worker"]) == (1, 1, 0)
    harness.worker.send(OK)
    assert status(served.received()) == 200


def test_a_worker_that_breaks_off_frees_its_place_for_the_next_request(harness: Harness) -> None:
    harness.build(1, queue=2.0, per_worker=1)
    clients = connect_clients(harness, 2)
    harness.worker.received()
    harness.network.wires[0].reset()
    # The first one has lost its place, and the worker that broke it off does not get it again.
    assert asked(harness) == [b"/1"]
    harness.worker.send(OK)
    harness.advance(0.5)
    assert asked(harness) == []
    assert status(clients[0].received()) == 502


def test_tcp_connections_wait_as_well(harness: Harness) -> None:
    harness.build(1, queue=2.0, per_worker=1)
    harness.connect_tcp()
    harness.connect_tcp()
    assert (len(harness.network.wires), len(harness.service.queue)) == (2, 1)
    harness.worker.send_eof()
    harness.network.wires[0].send_eof()
    harness.loop.run()
    assert not harness.service.queue
    assert harness.service.pool.members[0].active == 1
    for wire in harness.network.wires:
        wire.reset()
    harness.loop.run()
    assert harness.service.counters.retries == 0
