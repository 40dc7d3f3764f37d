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
    assert house.admission.clients == 0


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
