"""Which port a worker gets: its slot's own, or the one that its predecessor does not have."""

import socket
from collections.abc import Iterator

import pytest

from penstock_supervisor.config.model import Service
from penstock_supervisor.listeners import worker_ports
from penstock_supervisor.process.spawn import SpawnError
from penstock_supervisor.rollout.slot_ports import SlotPorts


def web(workers: int = 2, ports: str | None = None, **keys: object) -> Service:
    return Service.model_validate(
        {"name": "web", "listen": "127.0.0.1:0", "command": ["x"], "workers": workers,
         "worker_ports": ports, **keys}
    )  # fmt: skip


@pytest.fixture(autouse=True)
def every_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_ports, "is_free", lambda _: True)


@pytest.fixture
def stranger() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_slot_alternates_between_two_ports() -> None:
    ports = SlotPorts([web()], ())
    for slot in range(2):
        first, second = ports.of("web", slot)
        assert ports.first("web", slot) == first
        assert ports.other("web", slot, first) == second
        assert ports.other("web", slot, second) == first
    assert ports.own("web") == (ports.first("web", 0), ports.first("web", 1))
    assert len(ports.all) == 4


def test_a_slot_with_one_port_has_no_other() -> None:
    ports = SlotPorts([web(ports="9000-9002")], ())
    assert [len(ports.of("web", slot)) for slot in range(2)] == [2, 1]
    (only,) = ports.of("web", 1)
    assert ports.other("web", 1, only) is None


def test_a_service_without_ports_and_a_slot_that_is_gone_have_none() -> None:
    ports = SlotPorts([web(scheme="shared")], ())
    assert ports.of("web", 0) == ()
    assert ports.first("web", 0) is None
    assert ports.first("gone", 7) is None


def test_what_is_chosen_counts_from_its_use_on_and_can_be_taken_back() -> None:
    ports = SlotPorts([web()], ())
    before = ports.of("web", 1)
    chosen = ports.choose([web(workers=3)], ())
    assert ports.of("web", 2) == ()
    assert ports.use(chosen)["web"] == [ports.of("web", 0), before]
    assert len(ports.of("web", 2)) == 2
    assert ports.of("web", 1) == before


def test_a_port_that_somebody_else_has_is_exchanged_for_good(stranger: int) -> None:
    ports = SlotPorts([web(workers=1, ports=f"{stranger}-{stranger + 2}")], ())
    lost, second = ports.of("web", 0)
    spare = ports.exchange(web(ports=f"{stranger}-{stranger + 2}"), 0, lost, ())
    assert ports.of("web", 0) == (spare, second)
    assert spare.port == stranger + 2


def test_without_a_spare_port_the_error_names_who_has_it(stranger: int) -> None:
    service = web(workers=1, ports=f"{stranger}-{stranger + 1}")
    ports = SlotPorts([service], ())
    with pytest.raises(SpawnError, match=rf"port {stranger} of web/0 is taken by .+pid") as failure:
        ports.exchange(service, 0, ports.of("web", 0)[0], ())
    assert failure.value.temporary


def test_a_slot_that_comes_back_has_the_ports_that_it_had() -> None:
    ports = SlotPorts([web(workers=8)], ())
    at_first = [ports.of("web", slot) for slot in range(8)]
    # Each change is a reload; the one before is not remembered for ever, the ports are.
    for workers in (4, 2, 6, 1, 8):
        ports.use(ports.choose([web(workers=workers)], ()))
        assert [ports.of("web", slot) for slot in range(workers)] == at_first[:workers]
        assert len(ports.numbers("web")) == workers
    assert len(ports.all) == 16


def test_ports_of_slots_that_are_gone_go_to_nobody_else_while_others_are_free() -> None:
    ports = SlotPorts([web(workers=4)], ())
    gone = {address.port for slot in (2, 3) for address in ports.of("web", slot)}
    ports.use(ports.choose([web()], ()))
    other = Service.model_validate(
        {"name": "api", "listen": "127.0.0.1:0", "command": ["x"], "workers": 50}
    )
    ports.use(ports.choose([web(), other], ()))
    assert not gone & ports.all
    ports.exchange(other, 0, ports.of("api", 0)[0], ())
    assert not gone & ports.all


def test_in_a_small_range_slots_that_are_gone_give_their_ports_to_those_that_live() -> None:
    ports = SlotPorts([web(workers=4, ports="9000-9004")], ())
    assert [len(slot) for slot in ports.numbers("web")] == [2, 1, 1, 1]
    ports.use(ports.choose([web(ports="9000-9004")], ()))
    assert [len(slot) for slot in ports.numbers("web")] == [2, 2]
    ports.use(ports.choose([web(workers=3, ports="9000-9004")], ()))
    assert [len(slot) for slot in ports.numbers("web")] == [2, 2, 1]
    assert len(ports.all) == 5


def test_a_spare_port_is_taken_from_a_slot_that_is_gone_if_nothing_else_is_free(
    stranger: int,
) -> None:
    first = stranger - 3
    small = f"{first}-{stranger}"
    ports = SlotPorts([web(ports=small)], ())
    gone = ports.of("web", 1)
    ports.use(ports.choose([web(workers=1, ports=small)], ()))
    lost = ports.of("web", 0)[1]
    spare = ports.exchange(web(workers=1, ports=small), 0, lost, ())
    assert spare in gone
    assert ports.of("web", 0)[1] == spare
    assert spare not in ports.of("web", 1)


def test_a_service_that_is_gone_takes_its_ports_with_it() -> None:
    ports = SlotPorts([web()], ())
    for number in range(3):
        other = Service.model_validate(
            {"name": f"pr-{number}", "listen": "127.0.0.1:0", "command": ["x"], "workers": 2}
        )
        ports.use(ports.choose([web(), other], ()))
    ports.use(ports.choose([web()], ()))
    ports.use(ports.choose([web()], ()))
    assert ports.of("pr-0", 0) == ports.of("pr-2", 0) == ()
    assert len(ports.all) == 4
