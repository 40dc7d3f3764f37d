"""A relayed connection gets a worker or is closed, and both its sides end together.

Covers `tcp/duplex`.
"""

import pytest
from tests.proxy.conftest import Harness, Wire


def sides(harness: Harness) -> tuple[Wire, Wire]:
    """Client and worker of the newest relay: the worker's half is made first."""
    worker, client = harness.network.wires[-2:]
    return client, worker


def test_bytes_pass_both_ways_and_halves_close_one_by_one(harness: Harness) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    client.send(b"a")
    worker.send(b"b")
    assert (client.received(), worker.received()) == (b"b", b"a")
    client.send_eof()
    assert (worker.ended, client.lost) == (True, False)
    worker.send(b"c")
    worker.send_eof()
    assert client.received() == b"c"
    assert (client.lost, worker.lost) == (True, True)


@pytest.mark.parametrize("broken", [0, 1])
def test_one_broken_side_ends_the_other(harness: Harness, broken: int) -> None:
    harness.connect_tcp()
    pair = sides(harness)
    pair[broken].reset()
    assert pair[1 - broken].lost
    assert harness.service.counters.errors[("client_gone", "worker_reset")[broken]] == 1
    # Only the end that the client did not cause counts as a connection that was broken off.
    assert harness.service.counters.broken_off == broken


def test_a_side_that_stalls_stops_the_other(harness: Harness) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    client.stall()
    assert not worker.is_reading()
    client.unstall()
    assert worker.is_reading()


def test_a_client_that_breaks_off_is_not_kept_for_a_worker_that_takes_nothing(
    harness: Harness,
) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    worker.full = True
    client.send(b"a")
    assert not client.is_reading()
    client.reset()
    assert worker.lost
    assert harness.service.counters.errors["client_gone"] == 1


@pytest.mark.parametrize("takes", [False, True])
def test_the_side_that_is_still_open_has_time_to_take_the_rest(
    harness: Harness, *, takes: bool
) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    client.full = True
    worker.send(b"ab")
    worker.reset()
    harness.advance(29.0)
    assert (client.lost, client.received()) == (False, b"")
    if takes:
        client.unstall()
    else:
        harness.advance(2.0)
    assert (client.lost, client.received()) == (True, b"ab" if takes else b"")


def test_the_side_that_is_still_open_keeps_its_time_while_it_takes_bytes(harness: Harness) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    client.full = True
    worker.send(b"abc")
    worker.reset()
    for left in (2, 1):
        client.read_one_byte()
        harness.advance(31.0)
        assert (client.lost, client.get_write_buffer_size() & 0xFF) == (False, left)
    harness.advance(31.0)
    assert client.lost
    assert client.received() == b"ab"


@pytest.mark.parametrize("between", [0.0, 0.1, 0.2, 0.24])
def test_silence_is_never_cut_early(harness: Harness, between: float) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    harness.advance(0.24)
    harness.now += between
    client.send(b"a")
    last = harness.now
    harness.advance(last + 3600.0 - 0.01 - harness.now)
    assert (client.lost, worker.lost) == (False, False)
    harness.advance(1.0)
    assert (client.lost, worker.lost) == (True, True)


def test_a_refusal_leads_to_the_next_worker(harness: Harness) -> None:
    harness.build(3)
    harness.network.refusing = {1, 2}
    harness.connect_tcp()
    assert harness.network.dialed == [1, 2, 3]
    assert len(harness.network.wires) == 2
    for side in sides(harness):
        side.reset()


def test_the_time_to_connect_ends_behind_a_refusal_too(harness: Harness) -> None:
    harness.build(3)
    harness.network.refusing, harness.network.unresponsive = {1}, {2}
    harness.connect_tcp()
    assert harness.network.dialed == [1, 2]
    harness.advance(6.0)
    assert not harness.network.pending_connects
    assert harness.network.dialed == [1, 2, 3]
    for side in sides(harness):
        side.reset()


def test_without_a_worker_the_connection_is_closed(harness: Harness) -> None:
    harness.build(2)
    harness.network.refusing = {1, 2}
    harness.connect_tcp()
    assert harness.network.wires == []
    assert harness.fd_budget.clients == 0
    counters = harness.service.counters
    assert counters.broken_off + sum(counters.rejected.values()) == 1


def test_silence_on_both_sides_has_a_time_limit(harness: Harness) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    harness.advance(3000.0)
    client.send(b"a")
    harness.advance(3000.0)
    assert (client.lost, worker.lost) == (False, False)
    harness.advance(3700.0)
    assert (client.lost, worker.lost) == (True, True)
    assert harness.service.counters.errors["tunnel_timeout"] == 1
    assert harness.service.counters.broken_off == 0


@pytest.mark.parametrize("first", [0, 1], ids=["the client", "the worker"])
def test_when_one_side_has_ended_the_other_has_less_time_to_be_silent(
    harness: Harness, first: int
) -> None:
    harness.connect_tcp()
    pair = sides(harness)
    harness.advance(3000.0)
    pair[first].send_eof()
    # Each byte of the open side sets the time anew.
    for _ in range(3):
        harness.advance(59.0)
        pair[1 - first].send(b"a")
    harness.advance(59.0)
    assert not any(side.lost for side in pair)
    harness.advance(2.0)
    assert all(side.lost for side in pair)
    assert harness.service.counters.errors == harness.service.counters.errors | {
        "half_closed_timeout": 1, "tunnel_timeout": 0,
    }  # fmt: skip
    assert harness.service.counters.broken_off == 0


def test_a_slow_reader_of_a_side_that_is_open_is_not_taken_for_silence(harness: Harness) -> None:
    harness.connect_tcp()
    client, worker = sides(harness)
    client.send_eof()
    client.full = True
    worker.send(b"abc")
    harness.advance(61.0)
    for _ in range(2):
        client.read_one_byte()
        harness.advance(61.0)
        assert not client.lost
    harness.advance(61.0)
    assert client.lost


def test_the_time_of_half_closed_connections_is_never_longer_than_that_of_others(
    harness: Harness,
) -> None:
    config = harness.service.config
    timeouts = config.timeouts.model_copy(update={"tunnel": 10.0})
    harness.service.configure(config.model_copy(update={"timeouts": timeouts}))
    harness.connect_tcp()
    client, worker = sides(harness)
    client.send_eof()
    harness.advance(11.0)
    assert (client.lost, worker.lost) == (True, True)
