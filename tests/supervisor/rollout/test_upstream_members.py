"""The members of the moment: who keeps number and slot, at a reload and when a name changes.

Covers `names/upstream_member`.
"""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.config.model import Service
from penstock_supervisor.config.upstream_address import Kind, parse_upstream
from penstock_supervisor.names.answers import Endpoint
from penstock_supervisor.names.upstream_member import UpstreamMember
from penstock_supervisor.rollout.revision import Upstreams
from penstock_supervisor.rollout.upstream_members import MAX_NAMED, UpstreamMembers


def endpoint(text: str, weight: int = 1, name: str = "a:1") -> Endpoint:
    return Endpoint(parse_address(text), weight, name)


class Scene:
    """One service, and what names stand for."""

    def __init__(self, **names: list[Endpoint]) -> None:
        self.members = UpstreamMembers()
        self.names: dict[str, list[Endpoint]] = {}

    def service(self, *upstreams: str) -> Service:
        table: dict[str, Any] = {"name": "web", "listen": "127.0.0.1:1", "upstreams": upstreams}
        return Service.model_validate(table)

    def prepare(self, *upstreams: str) -> Upstreams:
        service = self.service(*upstreams)
        app = Service.model_validate({"name": "app", "listen": "127.0.0.1:2", "app": "a:b"})
        found = {
            one.address: tuple(self.names.get(one.address) or self._fixed(one.address))
            for one in service.upstreams
            if not self.members.is_known("web", one.address)
        }
        return self.members.prepare((service, app), {"web": found})

    @staticmethod
    def _fixed(text: str) -> list[Endpoint]:
        address = parse_upstream(text)
        return [Endpoint(address.address)] if address.kind is Kind.FIXED else []

    def use(self, *upstreams: str) -> Upstreams:
        prepared = self.prepare(*upstreams)
        self.members.use(prepared, {"web": self.service(*upstreams)})
        return prepared

    def change(self, upstream: str, *addresses: str) -> tuple[list[str], list[str]]:
        endpoints = [endpoint(one) for one in addresses]
        change = self.members.change("web", upstream, endpoints)
        assert change.is_any or not (change.joined or change.left)
        return (
            [str(one.address) for one in change.joined], [str(one.address) for one in change.left]
        )  # fmt: skip

    @property
    def rows(self) -> list[tuple[int, int, str]]:
        """Number, slot and address."""
        return [(one.number, one.slot, str(one.address)) for one in self.members.of("web")]


X, Y, Z = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
ALL = "dns:a:1"


def test_at_the_start_number_and_slot_are_the_place() -> None:
    scene = Scene()
    scene.names[ALL] = [endpoint(X), endpoint(Y)]
    scene.use(ALL, Z)
    assert scene.rows == [(0, 0, X), (1, 1, Y), (2, 2, Z)]


def test_at_a_reload_an_upstream_keeps_both_and_no_other_gets_its_number() -> None:
    scene = Scene()
    scene.use(X, Y)
    scene.use(Z, Y)
    assert scene.rows == [(2, 0, Z), (1, 1, Y)]
    scene.use(X, Y)
    assert scene.rows == [(3, 0, X), (1, 1, Y)]


def test_an_address_that_stays_keeps_both_when_the_name_changes() -> None:
    scene = Scene()
    scene.names[ALL] = [endpoint(X), endpoint(Y)]
    scene.use(ALL)
    assert scene.change(ALL, Y, Z) == ([Z], [X])
    assert scene.rows == [(1, 1, Y), (2, 0, Z)]
    assert scene.change(ALL) == ([], [Y, Z])
    assert scene.rows == []
    assert scene.change(ALL, X) == ([X], [])
    assert scene.rows == [(3, 0, X)]


def test_who_takes_the_place_of_another_address_has_its_slot() -> None:
    scene = Scene()
    scene.names["a:1"] = [endpoint(X)]
    scene.use(Z, "a:1")
    scene.change("a:1", Y)
    assert scene.rows == [(0, 0, Z), (2, 1, Y)]


def test_what_a_name_has_become_is_not_taken_back_by_a_reload() -> None:
    scene = Scene()
    scene.names[ALL] = [endpoint(X)]
    before = scene.use(ALL)
    prepared = scene.prepare(ALL, "unix:/x")
    scene.change(ALL, Y)
    scene.members.use(prepared, {"web": scene.service(ALL, "unix:/x")})
    assert [row[2] for row in scene.rows] == [Y, "unix:/x"]
    assert len({row[1] for row in scene.rows}) == 2
    scene.members.use(before, {"web": scene.service(ALL)})
    assert [row[2] for row in scene.rows] == [Y]


def test_what_was_removed_comes_back_as_it_was_when_a_reload_is_taken_back() -> None:
    scene = Scene()
    scene.names[ALL] = [endpoint(X)]
    before = scene.use(ALL, Z)
    scene.use(Z)
    scene.members.use(before, {"web": scene.service(ALL, Z)})
    assert scene.rows == [(0, 0, X), (1, 1, Z)]


def test_a_name_that_took_a_slot_meanwhile_keeps_it() -> None:
    scene = Scene()
    scene.use(ALL)
    prepared = scene.prepare(ALL, Z)
    scene.change(ALL, X)
    scene.members.use(prepared, {"web": scene.service(ALL, Z)})
    assert [(slot, where) for _, slot, where in scene.rows] == [(0, X), (1, Z)]


def test_weights_are_those_of_the_configuration_or_of_the_records() -> None:
    scene = Scene()
    srv = "dns+srv:_x._tcp.a"
    scene.names = {ALL: [endpoint(X)], srv: [endpoint(Y, 7, "t:1")]}
    scene.use(f"{ALL} weight=3", srv)
    assert [one.weight for one in scene.members.of("web")] == [3, 7]
    scene.use(f"{ALL} weight=4", srv)
    scene.members.change("web", srv, [endpoint(Y, 9, "t:1")])
    scene.change(ALL, X, Z)
    assert [one.weight for one in scene.members.of("web")] == [4, 4, 9]


def test_all_names_together_have_a_bound_and_who_is_there_stays() -> None:
    many = [endpoint(f"10.1.{n // 250}.{n % 250}:1") for n in range(MAX_NAMED + 9)]
    scene = Scene()
    scene.names[ALL] = many[: MAX_NAMED - 1]
    scene.use(ALL, Z, "dns:b:1", "dns:c:1")
    assert scene.members.change("web", "dns:b:1", many[-2:]).left_out == 1
    change = scene.members.change("web", "dns:c:1", many[-2:])
    assert (change.is_any, change.left_out) == (False, 2)
    assert len(scene.members.of("web")) == MAX_NAMED + 1
    scene.names["dns:d:1"] = many[:3]
    scene.use(ALL, Z, "dns:d:1", "dns:c:1")
    assert scene.members.endpoints("web", "dns:d:1") == ()
    scene.members.change("web", ALL, many[:2])
    assert scene.members.change("web", "dns:c:1", many).left_out == 9 + 2
    assert {(Z, 1)} <= {(str(one.address), one.weight) for one in scene.members.of("web")}


def test_names_are_told_and_addresses_are_not() -> None:
    scene = Scene()
    scene.names["a:1"] = [endpoint(X)]
    scene.use(Z, "a:1", ALL)
    assert list(scene.members.names(["web", "other"])) == [("web", "a:1"), ("web", ALL)]
    assert scene.members.endpoints("web", "a:1") == (endpoint(X),)
    assert scene.members.endpoints("web", "b:1") == scene.members.endpoints("web", ALL) == ()


def test_a_label_has_the_name_and_a_member_that_is_gone_has_none() -> None:
    scene = Scene()
    scene.names["a:1"] = [endpoint(X)]
    scene.use(Z, "a:1")
    assert scene.members.label(("web", 0)) == "web/0"
    assert scene.members.label(("web", 1)) == f"web/1, a:1 ({X}),"
    scene.members.forget("web")
    assert scene.members.label(("web", 1)) == ""


def test_a_member_is_its_name_and_address_for_people() -> None:
    assert str(UpstreamMember(0, 0, endpoint(X), 1)) == f"a:1 ({X})"
    assert str(UpstreamMember(0, 0, Endpoint(Address(path="/x")), 1)) == "unix:/x"


HOSTS = st.lists(st.integers(1, 9), unique=True)


@given(st.lists(HOSTS))
def test_slots_are_never_more_than_members_at_a_time_and_numbers_never_come_back(
    answers: list[list[int]],
) -> None:
    scene = Scene()
    scene.use(ALL, Z.replace(":1", ":2"))
    seen: dict[int, str] = {}
    most = 1
    for answer in answers:
        scene.change(ALL, *(f"10.0.0.{host}:1" for host in answer))
        most = max(most, len(answer) + 1)
        slots = [slot for _, slot, _ in scene.rows]
        assert len(set(slots)) == len(slots)
        assert max(slots) < most
        for number, _, address in scene.rows:
            assert seen.setdefault(number, address) == address
