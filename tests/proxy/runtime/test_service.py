"""Workers are added to a running service and removed from it, and leave nothing behind.

Covers `service/context`.
"""

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.config import Target

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def target(slot: int) -> Target:
    return Target(slot=slot, address=f"127.0.0.1:{slot + 1}", joined=True, up=True)


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


def test_a_slot_is_added_once_and_again_when_it_was_removed(harness: Harness) -> None:
    with pytest.raises(ValueError, match="0"):
        harness.service.add_member(target(0))
    harness.service.remove_member(0)
    harness.service.add_member(target(0))
    ask(harness)


def test_slots_that_come_and_go_for_ever_leave_nothing(harness: Harness) -> None:
    service = harness.service
    for slot in range(1, 200):
        service.add_member(target(slot))
        ask(harness)
        ask(harness)
        # Its worker ends an idle connection, which is remembered for a while.
        harness.worker.send_eof()
        service.remove_member(slot)
        harness.loop.run()
    harness.advance(61.0)
    assert [member.slot for member in service.pool.members] == [0]
    assert list(service.addresses) == [0]
    assert set(service.connections._idle) | set(service.connections._closes_after) <= {0}
    assert list(service.health_checker._checked) == [0]
