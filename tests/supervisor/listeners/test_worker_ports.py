"""Ports for workers are free, and unlikely to be taken by others."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners import worker_ports
from penstock_supervisor.listeners.listener import Listener
from penstock_supervisor.listeners.worker_ports import choose_addresses, free_ports


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def always_first(_: int) -> int:
    return 0


def test_free_ports_are_outside_of_the_ephemeral_range() -> None:
    low, high = map(int, worker_ports._EPHEMERAL_RANGE_FILE.read_text().split())
    found = free_ports(20, None, (), key="k", random_below=always_first)
    assert len(set(found)) == 20
    if high - low < 50_000:
        assert not any(low <= port <= high for port in found)


@pytest.mark.parametrize(
    ("own", "lowest"),
    [((32_768, 60_999), 10_000), ((2_000, 65_535), 1_024), ((1_024, 65_535), 10_000)],
)
def test_ports_are_found_even_if_all_are_ephemeral(
    own: tuple[int, int], lowest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_ports, "_ephemeral_range", lambda: own)
    assert worker_ports._safe_ports(4)[0] == lowest


def test_the_search_starts_at_a_random_port() -> None:
    (first,) = free_ports(1, None, (), key="k", random_below=always_first)
    (later,) = free_ports(1, None, (), key="k", random_below=lambda n: n // 2)
    assert first < later


def test_a_given_range_is_used_without_taken_ports(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    given = (port, min(port + 50, 65_535))
    found = free_ports(2, given, (), key="k", random_below=always_first)
    assert port not in found
    again = free_ports(2, given, found, key="k", random_below=always_first)
    assert not set(again) & set(found)


def test_a_range_that_is_too_small_is_one_clear_line(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(StartError) as failure:
        free_ports(2, (port, port), (), key="service.web.worker_ports", random_below=always_first)
    assert re.fullmatch(
        rf"service.web.worker_ports: {port}-{port} has 0 free ports and 2 are needed; "
        rf".+ \(pid {os.getpid()}\) has port {port}",
        str(failure.value),
    )


def test_services_never_share_a_port_and_upstreams_need_none() -> None:
    free = free_ports(1, None, (), key="k", random_below=always_first)[0]
    services = (
        Service(name="a", listen="127.0.0.1:1", app="a:b", workers=3),
        Service.model_validate(
            {
                "name": "b",
                "listen": "127.0.0.1:2",
                "command": ["b"],
                "worker_ports": f"{free}-{free + 60}",
            }
        ),
        Service.model_validate(
            {"name": "c", "listen": "127.0.0.1:3", "upstreams": ["127.0.0.1:9"]}
        ),
    )
    places = choose_addresses(services, ())
    assert {name: len(found) for name, found in places.items()} == {"a": 3, "b": 2, "c": 0}
    of_a, of_b = (
        {address.port for slot in places[name] for address in slot} for name in ("a", "b")
    )
    assert (len(of_a), len(of_b), len(of_a | of_b)) == (6, 4, 10), "two for each slot"
    assert all(free <= port <= free + 60 for port in of_b)


def a_range(first: int, count: int, workers: int) -> Service:
    return Service.model_validate(
        {"name": "web", "listen": "127.0.0.1:0", "command": ["a"], "workers": workers,
         "worker_ports": f"{first}-{first + count - 1}"}
    )  # fmt: skip


def test_in_a_short_range_the_first_slots_have_the_second_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_ports, "is_free", lambda _: True)
    slots = choose_addresses((a_range(9000, 4, workers=3),), ())["web"]
    assert [[one.port for one in slot] for slot in slots] == [[9000, 9003], [9001], [9002]]


def test_a_slot_keeps_its_ports_when_others_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_ports, "is_free", lambda _: True)
    before = choose_addresses((a_range(9000, 20, workers=2),), ())
    more = choose_addresses((a_range(9000, 20, workers=4),), (), before)
    fewer = choose_addresses((a_range(9000, 20, workers=1),), (), more)
    assert more["web"][:2] == before["web"]
    assert fewer["web"] == before["web"][:1]
    ports = [one.port for slot in more["web"] for one in slot]
    assert len(set(ports)) == len(ports) == 8


def test_a_port_outside_a_new_range_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_ports, "is_free", lambda _: True)
    before = choose_addresses((a_range(9000, 4, workers=2),), ())
    after = choose_addresses((a_range(9002, 8, workers=2),), (), before)
    assert [[one.port for one in slot] for slot in before["web"]] == [[9000, 9002], [9001, 9003]]
    assert [[one.port for one in slot] for slot in after["web"]] == [[9002, 9004], [9003, 9005]]


def test_a_worker_never_gets_the_port_of_a_listener_that_does_not_listen_yet() -> None:
    with closing(Listener("127.0.0.1:0", "service.web.listen", bind_only=True)) as listener:
        port = listener.address.port
        web = Service.model_validate(
            {"name": "web", "listen": "127.0.0.1:0", "command": ["a"], "workers": 1,
             "worker_ports": f"{port}-{port}"}
        )  # fmt: skip
        assert worker_ports.is_free(port)
        with pytest.raises(StartError, match=f"{port}-{port} has 0 free ports and 1 are needed"):
            choose_addresses((web,), {listener.address.port})
