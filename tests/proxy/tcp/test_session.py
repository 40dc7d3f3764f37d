"""A relayed connection finds a worker or ends, and both its sides end together."""

import pytest
from tests.proxy.conftest import House, Wire


def sides(house: House) -> tuple[Wire, Wire]:
    """Client and worker of the newest relay: the worker's half is made first."""
    worker, client = house.network.wires[-2:]
    return client, worker


def test_bytes_pass_both_ways_and_halves_close_one_by_one(house: House) -> None:
    house.relay()
    client, worker = sides(house)
    client.send(b"a")
    worker.send(b"b")
    assert (client.taken(), worker.taken()) == (b"b", b"a")
    client.finish()
    assert (worker.ended, client.lost) == (True, False)
    worker.send(b"c")
    worker.finish()
    assert client.taken() == b"c"
    assert (client.lost, worker.lost) == (True, True)


@pytest.mark.parametrize("broken", [0, 1])
def test_one_broken_side_ends_the_other(house: House, broken: int) -> None:
    house.relay()
    pair = sides(house)
    pair[broken].reset()
    assert pair[1 - broken].lost
    assert house.service.counters.errors[("client_gone", "worker_reset")[broken]] == 1


def test_a_side_that_stalls_stops_the_other(house: House) -> None:
    house.relay()
    client, worker = sides(house)
    client.stall()
    assert not worker.is_reading()
    client.flow()
    assert worker.is_reading()


def test_a_client_that_breaks_off_is_not_kept_for_a_worker_that_takes_nothing(
    house: House,
) -> None:
    house.relay()
    client, worker = sides(house)
    worker.full = True
    client.send(b"a")
    assert not client.is_reading()
    client.reset()
    assert worker.lost
    assert house.service.counters.errors["client_gone"] == 1


@pytest.mark.parametrize("takes", [False, True])
def test_the_last_one_has_its_time_to_take_the_rest(house: House, *, takes: bool) -> None:
    house.relay()
    client, worker = sides(house)
    client.full = True
    worker.send(b"ab")
    worker.reset()
    house.pass_time(29.0)
    assert (client.lost, client.taken()) == (False, b"")
    if takes:
        client.flow()
    else:
        house.pass_time(2.0)
    assert (client.lost, client.taken()) == (True, b"ab" if takes else b"")


def test_the_last_one_keeps_its_time_as_long_as_it_takes_something(house: House) -> None:
    house.relay()
    client, worker = sides(house)
    client.full = True
    worker.send(b"abc")
    worker.reset()
    for left in (2, 1):
        client.sip()
        house.pass_time(31.0)
        assert (client.lost, client.get_write_buffer_size() & 0xFF) == (False, left)
    house.pass_time(31.0)
    assert client.lost
    assert client.taken() == b"ab"


@pytest.mark.parametrize("between", [0.0, 0.1, 0.2, 0.24])
def test_silence_is_never_cut_early(house: House, between: float) -> None:
    house.relay()
    client, worker = sides(house)
    house.pass_time(0.24)
    house.now += between
    client.send(b"a")
    last = house.now
    house.pass_time(last + 3600.0 - 0.01 - house.now)
    assert (client.lost, worker.lost) == (False, False)
    house.pass_time(1.0)
    assert (client.lost, worker.lost) == (True, True)


def test_a_refusal_leads_to_the_next_worker(house: House) -> None:
    house.open(3)
    house.network.refusing = {1, 2}
    house.relay()
    assert house.network.dialed == [1, 2, 3]
    assert len(house.network.wires) == 2
    for side in sides(house):
        side.reset()


def test_the_time_to_connect_ends_behind_a_refusal_too(house: House) -> None:
    house.open(3)
    house.network.refusing, house.network.silent = {1}, {2}
    house.relay()
    assert house.network.dialed == [1, 2]
    house.pass_time(6.0)
    assert not house.network.hanging
    assert house.network.dialed == [1, 2, 3]
    for side in sides(house):
        side.reset()


def test_nobody_there_ends_it(house: House) -> None:
    house.open(2)
    house.network.refusing = {1, 2}
    house.relay()
    assert house.network.wires == []
    assert house.fd_budget.clients == 0


def test_silence_on_both_sides_has_its_time(house: House) -> None:
    house.relay()
    client, worker = sides(house)
    house.pass_time(3000.0)
    client.send(b"a")
    house.pass_time(3000.0)
    assert (client.lost, worker.lost) == (False, False)
    house.pass_time(3700.0)
    assert (client.lost, worker.lost) == (True, True)
    assert house.service.counters.errors["tunnel_timeout"] == 1
