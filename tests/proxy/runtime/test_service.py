"""Workers are added to a running service and removed from it, and leave nothing behind.

Covers `service/context`.
"""

from typing import TYPE_CHECKING

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import Target
from penstock_proxy.metrics import RemovedWorkers
from penstock_proxy.runtime.stats import pool_rows

if TYPE_CHECKING:
    from penstock_proxy.balancing.outlier_detection import Recent

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def target(number: int, slot: int | None = None) -> Target:
    slot = number if slot is None else slot
    address = f"127.0.0.1:{number + 1}"
    return Target(member=number, slot=slot, address=address, joined=True, up=True)


def ask(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    (worker,) = [wire for wire in harness.network.wires if wire.received()]
    worker.send(OK)
    assert client.written.startswith(b"HTTP/1.1 200 ")
    client.reset()


def test_an_added_worker_gets_its_turn(harness: Harness) -> None:
    harness.service.add_member(target(1))
    for _ in range(4):
        ask(harness)
    assert sorted(harness.network.dialed) == [1, 2]


def test_a_removed_worker_gets_no_request_and_its_idle_connections_end(harness: Harness) -> None:
    harness.service.add_member(target(1))
    ask(harness)
    ask(harness)
    harness.service.remove_member(0)
    harness.loop.run()
    assert [wire.lost for wire in harness.network.wires] == [True, False]
    for _ in range(3):
        ask(harness)
    assert harness.network.dialed == [1, 2]


def test_what_a_removed_worker_has_begun_is_finished_and_its_connection_not_kept(
    harness: Harness,
) -> None:
    client = harness.client()
    client.send(GET)
    worker = harness.worker
    harness.service.add_member(target(1))
    harness.service.remove_member(0)
    worker.send(OK)
    assert client.written == OK
    assert worker.lost


def test_a_request_waits_for_a_worker_that_is_added(harness: Harness) -> None:
    harness.build(queue=5.0)
    harness.service.remove_member(0)
    client = harness.client()
    client.send(GET)
    assert len(harness.service.queue) == 1
    harness.service.add_member(target(7))
    harness.advance(0.25)
    harness.worker.send(OK)
    assert client.written == OK


def test_a_member_is_added_once_and_again_when_it_was_removed(harness: Harness) -> None:
    with pytest.raises(ValueError, match="0"):
        harness.service.add_member(target(0))
    harness.service.remove_member(0)
    harness.service.add_member(target(0))
    ask(harness)


def test_successors_for_ever_leave_nothing_but_the_counts_of_their_slot(harness: Harness) -> None:
    service = harness.service
    for number in range(1, 200):
        service.add_member(target(number, slot=0))
        for _ in range(2):
            ask(harness)
        # Its worker ends an idle connection, which is remembered for a while.
        harness.worker.send_eof()
        service.remove_member(number)
        harness.loop.run()
    harness.advance(61.0)
    assert [member.number for member in service.pool.members] == [0]
    assert list(service.addresses) == [0]
    assert set(service.connections._idle) | set(service.connections._closes_after) <= {0}
    assert list(service.health_checker._checked) == [0]
    # With what the workers answered that have gone.
    assert {worker: count for worker, count in service.counters.by_worker().items() if count} == {
        service.pool.member(0): 199,
        RemovedWorkers(0): 199,
    }


def answered(harness: Harness, bad_port: int) -> None:
    """One request; the worker at that port answers it with an error, all others well."""
    client = harness.client()
    client.send(GET)
    ports = zip(harness.network.dialed, harness.network.wires, strict=True)
    ((port, worker),) = [(port, wire) for port, wire in ports if wire.received()]
    bad = b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"
    worker.send(bad if port == bad_port else OK)
    client.reset()


@pytest.mark.parametrize("bad", [0, 2])
def test_a_worker_is_not_charged_with_what_the_other_one_of_its_slot_fails(
    harness: Harness, bad: int
) -> None:
    harness.build(2)
    service = harness.service
    service.add_member(target(2, slot=0))
    harness.advance(1.25)
    for _ in range(75):
        answered(harness, bad_port=bad + 1)
        # So that failures in a row are no reason.
        service.pool.succeeded(service.pool.member(bad))
    harness.advance(1.25)
    states = {member.number: member.state for member in service.pool.members}
    assert states == {**dict.fromkeys(range(3), MemberState.UP), bad: MemberState.EJECTED}
    assert "25 failures of 25 requests" in service.pool.member(bad).reason


def test_a_worker_and_its_successor_have_each_their_own_row_of_requests_and_durations(
    harness: Harness,
) -> None:
    service = harness.service
    service.add_member(target(1, slot=0))
    for _ in range(10):
        answered(harness, bad_port=2)
        # So that it is not left out.
        service.pool.succeeded(service.pool.member(1))
    rows = {row["member"]: row for rows in pool_rows(service) for row in rows}
    assert {row["slot"] for row in rows.values()} == {0}
    assert [(rows[one]["requests"], rows[one]["failed"]) for one in (0, 1)] == [(5, 0), (5, 5)]
    assert [sum(rows[one]["durations"]) for one in (0, 1)] == [5, 5]
    assert service.counters.ended() == 10


def test_an_ejection_is_told_with_what_all_had_since_that_worker_came(harness: Harness) -> None:
    harness.build(2)
    service = harness.service
    told: list[tuple[int, Recent]] = []
    service._on_rotation = lambda member, _, recent: told.append((member.number, recent))
    for _ in range(10):
        answered(harness, bad_port=1)
        service.pool.succeeded(service.pool.member(0))
    successor = service.add_member(target(2, slot=0).model_copy(update={"up": False}))
    service.pool.checked(successor, ok=True, now=harness.now, reason="")
    for _ in range(15):
        answered(harness, bad_port=3)
    (came, ejected) = told
    assert came == (2, [])
    assert (successor.state, ejected[0]) == (MemberState.EJECTED, 2)
    rows = {number: (failed, requests) for number, failed, requests in ejected[1]}
    # The last one has not ended yet, and who serves it is a matter of turns.
    assert rows[2] == (5, 5)
    assert [rows[one][0] for one in (0, 1)] == [0, 0]
    assert all(rows[one][1] in (4, 5) for one in (0, 1))
