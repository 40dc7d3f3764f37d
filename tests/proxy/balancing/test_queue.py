"""Who waits for a worker is served in order, in bounds of number and time, and hears why not."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.conftest import House, Wire

from penstock_proxy.balancing.pool import Pool
from penstock_proxy.balancing.queue import Queue, nobody, retry_after
from penstock_proxy.config import Balance, Ejection, Health, Limits, Target
from penstock_proxy.errors import NO_DESCRIPTORS, NO_WORKER, QUEUE_FULL, QUEUE_TIMEOUT, Fault

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


# -- the queue


def nothing() -> None:
    """What serves somebody whose turn never comes."""


def test_first_come_is_first_served_whoever_leaves() -> None:
    queue = Queue(Limits(), 2.0)
    served: list[str] = []
    for who in "abcd":
        assert queue.enter(who, partial(served.append, who), 10.0, 11.5, 1) == 0.5
    queue.leave("b")
    queue.leave("b")
    assert (len(queue), "b" in queue, list(queue)) == (3, False, ["a", "c", "d"])
    while queue:
        queue.first()()
    assert served == ["a", "c", "d"]


def test_the_queue_is_bounded_by_number_and_time() -> None:
    queue = Queue(Limits(queue=3), 2.0)
    assert queue.enter(0, nothing, 0.0, 2.0, 0) is NO_WORKER
    assert queue.enter(0, nothing, 0.0, 2.0, 1) is QUEUE_TIMEOUT
    assert [isinstance(queue.enter(who, nothing, 0.0, 0.0, 1), float) for who in range(3)] == [
        True
    ] * 3
    assert queue.enter(3, nothing, 0.0, 0.0, 1) is QUEUE_FULL
    queue.leave(1)
    assert queue.enter(3, nothing, 0.0, 0.0, 1) == 2.0


@pytest.mark.parametrize(("workers", "room"), [(0, 2), (1, 2), (2, 4), (9, 5)])
def test_the_queue_is_as_long_as_its_workers_are_many(workers: int, room: int) -> None:
    queue = Queue(Limits(queue=5, queue_per_worker=2), 2.0)
    entered = [queue.enter(who, nothing, 0.0, 0.0, workers) for who in range(9)]
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
def test_a_client_hears_when_to_try_again(fault: Fault, back: list[float], seconds: int) -> None:
    assert retry_after(fault, 100.0, back, 1.5) == seconds


def test_nobody_there_is_not_nobody_free() -> None:
    assert (nobody(0), nobody(1)) == (NO_WORKER, QUEUE_TIMEOUT)


# -- the limit of one worker


@pytest.mark.parametrize(
    "balance", ["round_robin", "least_connections", "power_of_two", "client_hash", "random"]
)
@given(data=st.data())
def test_no_policy_gives_a_worker_more_than_it_may_have(
    balance: Balance, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, 4))
    limit = data.draw(st.integers(1, 3))
    pool = Pool(
        [
            Target(slot=n, address=f"127.0.0.1:{n + 1}", joined=True, up=True, weight=1 + n % 3)
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


def asked(house: House) -> list[bytes]:
    """What workers have got, by connection."""
    return [bytes(wire.taken()).split(b" ", 2)[1] for wire in house.network.wires if wire.written]


def crowd(house: House, count: int) -> list[Wire]:
    clients = [house.client() for _ in range(count)]
    for number, client in enumerate(clients):
        client.send(GET % number)
    return clients


def test_what_is_too_much_for_the_workers_waits_in_order(house: House) -> None:
    house.open(2, queue=2.0, per_worker=1)
    clients = crowd(house, 5)
    assert asked(house) == [b"/0", b"/1"]
    assert [member.active for member in house.service.pool.members] == [1, 1]
    one, other = house.network.wires
    other.send(OK)
    assert asked(house) == [b"/2"]
    other.send(OK)
    one.send(OK)
    assert sorted(asked(house)) == [b"/3", b"/4"]
    assert len(house.network.wires) == 2, "whoever is next gets the connection that is there"
    one.send(OK)
    other.send(OK)
    assert [status(client.taken()) for client in clients] == [200] * 5


def test_who_comes_late_does_not_overtake(house: House) -> None:
    house.open(1, queue=2.0, per_worker=1)
    first, waiting, late = (house.client() for _ in range(3))
    first.send(GET % 0)
    waiting.send(GET % 1)
    # The answer, and before the loop's next turn two more requests.
    house.worker.taken()
    house.worker.deliver_only(OK)
    first.deliver_only(GET % 2)
    late.deliver_only(GET % 3)
    house.loop.run()
    for number in (b"1", b"2", b"3"):
        assert asked(house) == [b"/" + number]
        house.worker.send(OK)


def test_who_leaves_the_queue_is_never_served(house: House) -> None:
    house.open(1, queue=2.0, per_worker=1)
    clients = crowd(house, 3)
    clients[1].reset()
    house.worker.taken()
    house.worker.send(OK)
    assert asked(house) == [b"/2"]
    house.worker.send(OK)


def test_who_waits_too_long_or_finds_a_full_queue_hears_when_to_come_again(house: House) -> None:
    house.open(1, queue=2.5, per_worker=1, queue_per_worker=1)
    served, waiting, refused = crowd(house, 3)
    answer = refused.taken()
    assert status(answer) == 503
    assert b"\r\nRetry-After: 3\r\n" in answer
    assert not refused.lost
    house.pass_time(3.0)
    answer = waiting.taken()
    assert status(answer) == 503
    assert b"no worker was free in time" in answer
    assert b"\r\nRetry-After: 3\r\n" in answer
    rejected = house.service.counters.rejected
    assert (rejected["queue_full"], rejected["queue_timeout"], rejected["no_worker"]) == (1, 1, 0)
    house.worker.send(OK)
    assert status(served.taken()) == 200


def test_a_worker_that_breaks_off_makes_room_for_the_next(house: House) -> None:
    house.open(1, queue=2.0, per_worker=1)
    crowd(house, 2)
    house.worker.taken()
    house.network.wires[0].reset()
    # The first one is tried again, and has lost its place.
    assert asked(house) == [b"/1"]
    house.worker.send(OK)
    assert asked(house) == [b"/0"]
    house.worker.send(OK)


def test_relayed_connections_wait_as_well(house: House) -> None:
    house.open(1, queue=2.0, per_worker=1)
    house.relay()
    house.relay()
    assert (len(house.network.wires), len(house.service.queue)) == (2, 1)
    house.worker.finish()
    house.network.wires[0].finish()
    house.loop.run()
    assert not house.service.queue
    assert house.service.pool.members[0].active == 1
    for wire in house.network.wires:
        wire.reset()
    house.loop.run()
    assert house.service.counters.retries == 0
