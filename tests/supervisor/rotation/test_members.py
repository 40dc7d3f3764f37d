"""A worker and its successor are two members of the rotation, and neither counts for the other."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.support.supervisor.rotation import WEB, Harness, Loop, Proxy

from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config.model import Service
from penstock_supervisor.rotation.rotation import Rotation


@pytest.fixture
def ports() -> Iterator[Harness]:
    harness = Harness("ports", 0)
    yield harness
    harness.close()


@pytest.fixture
def handoff() -> Iterator[Harness]:
    harness = Harness("handoff", 2)
    yield harness
    harness.close()


def test_a_successor_is_in_the_rotation_beside_the_worker_that_it_replaces(ports: Harness) -> None:
    ports.report(0, "up")
    ports.report(1, "up")
    successor = ports.add_successor()
    (added,) = ports.proxies[0].received("add_member")[1:]
    assert added == {
        "cmd": "add_member", "service": "web", "member": 6, "slot": 0, "weight": 1,
        "address": "127.0.0.1:1",
    }  # fmt: skip
    ports.report(0, "up", 6)
    assert not ports.rotation.is_up(successor)
    assert ports.rotation.member_state(successor) == "checking"
    ports.report(1, "up", 6)
    assert ports.rotation.is_up(successor)
    assert ports.is_up()
    assert ports.changes == [(5, "up"), (6, "up")]
    ports.report(0, "down", 6)
    assert ports.is_up(), "what a newcomer does is not charged to the worker"
    assert ports.rotation.member_state(successor) == "down"


def test_a_drain_is_of_one_member_and_not_of_its_slot(ports: Harness) -> None:
    successor = ports.add_successor()
    for member in (5, 6):
        ports.report(0, "up", member)
        ports.report(1, "up", member)
    ports.slots.take_over(successor)
    ports.drain()
    assert ports.proxies[0].received("drain_worker")[0]["member"] == 5
    assert not ports.is_up()
    assert ports.rotation.is_up(successor)
    ports.report(0, "up", 5)
    assert not ports.rotation.is_up_anywhere(WEB), "it was on its way before"
    assert ports.rotation.member_state(cast("Any", ports.worker)) == "draining"
    assert ports.rotation.services_up() == {"web"}


def test_a_proxy_that_starts_later_gets_every_member_with_its_state(ports: Harness) -> None:
    ports.report(0, "up")
    successor = ports.add_successor()
    ports.drain()

    def targets() -> list[tuple[int, int, bool, bool]]:
        found = ports.rotation.targets()["web"]
        return [(one.member, one.slot, one.joined, one.up) for one in found]

    assert targets() == [(5, 0, False, False), (6, 0, True, False)]
    ports.report(0, "up", 6)
    assert targets() == [(5, 0, False, False), (6, 0, True, True)]
    ports.slots.take_over(successor)
    ports.slots.forget(cast("Any", ports.worker))
    ports.rotation.remove(cast("Any", ports.worker))
    assert targets() == [(6, 0, True, True)]
    assert [one["member"] for one in ports.proxies[0].received("remove_member")] == [5]


def test_a_member_stays_until_nothing_is_left_in_its_links(handoff: Harness) -> None:
    links = handoff.worker.links
    worker = cast("Any", handoff.worker)
    handoff.rotation.join(worker)
    handoff.rotation.leave(worker)
    handoff.rotation.worker_exited(worker)
    handoff.rotation.remove(worker)
    handoff.send(0, "unlinked", link=links[0].number)
    handoff.proxy_dies(1)
    # The other one takes back what was on its way, and has to know on whose behalf.
    assert not handoff.proxies[0].received("remove_member")
    assert [one.member for one in handoff.rotation.targets()["web"]] == [5]
    handoff.send(0, "unlinked", link=links[1].number)
    assert [one["member"] for one in handoff.proxies[0].received("remove_member")] == [5]
    assert handoff.rotation.targets() == {}


def test_what_is_said_of_a_member_that_is_gone_changes_nothing(ports: Harness) -> None:
    worker = cast("Any", ports.worker)
    ports.slots.remove(("web", 0))
    ports.slots.forget(worker)
    ports.rotation.remove(worker)
    ports.rotation.remove(worker)
    assert len(ports.proxies[0].received("remove_member")) == 1
    ports.report(0, "up")
    ports.report(0, "up", 77)
    ports.send(0, "rotation", service="gone", member=5, state="up", reason="")
    assert ports.changes == []
    assert not ports.rotation.is_up_anywhere(WEB)


def test_a_new_proxy_gets_the_links_of_both_workers_of_a_slot(handoff: Harness) -> None:
    successor = handoff.add_successor(2)
    handoff.rotation.join(cast("Any", handoff.worker))
    handoff.proxies[0] = handoff.slots.proxies[0] = cast("Any", Proxy(0))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[0]), [])
    joined = {one["member"]: one["link"] for one in handoff.proxies[0].received("join")}
    assert joined == {5: handoff.worker.links[0].number, 6: successor.links[0].number}
    for link in successor.links:
        link.close()


def test_an_upstream_has_no_child_and_a_view_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    service = Service.model_validate(
        {"name": "api", "listen": "127.0.0.1:0", "upstreams": ["127.0.0.1:1", "127.0.0.1:2"]}
    )
    slots, changes = Slots(), list[tuple[Any, str]]()
    cast("list[Any]", slots.proxies).append(Proxy(0))
    rotation = Rotation(
        cast("Any", Loop()), {service.name: service}, slots, cast("Any", None),
        lambda child, state: changes.append((child, state)),
        upstream_label=lambda member: "api/0, a.internal:1," if member in there else "",
    )  # fmt: skip
    there = {("api", 1), ("api", 2)}

    def report(number: int, state: str) -> None:
        message = {"cmd": "rotation", "service": "api", "member": number, "state": state}
        assert rotation.handle_message(slots.proxies[0], message)

    report(1, "up")
    assert (changes, rotation.is_up_anywhere(("api", 1))) == ([(None, "up")], True)
    assert caplog.messages == ["api/0, a.internal:1, is up"]
    there.remove(("api", 1))
    rotation.upstream_left(("api", 1))
    assert rotation.services_up() == {"api"}
    assert rotation.is_up_anywhere(("api", 1)), "the proxy waits for another one"
    report(1, "absent")
    report(1, "up")
    assert list(rotation._views) == []
    report(2, "down")
    there.remove(("api", 2))
    rotation.upstream_left(("api", 2))
    assert list(rotation._views) == []
    assert len(caplog.messages) == 2
    # A reload takes one away without a word about it.
    there.add(("api", 2))
    report(2, "up")
    there.remove(("api", 2))
    report(2, "absent")
    assert list(rotation._views) == []
    assert rotation.services_up() == set()
