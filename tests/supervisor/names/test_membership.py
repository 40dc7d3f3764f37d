"""What an answer means for the members: rotation changes nothing, and silence takes nobody away."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.net.address import Address
from penstock_supervisor.config.upstream_address import Kind
from penstock_supervisor.names.answers import MAX_ENDPOINTS, Endpoint, Found
from penstock_supervisor.names.membership import settle


def endpoint(host: str, name: str = "app:80", weight: int = 1) -> Endpoint:
    return Endpoint(Address(host, 80), weight, name)


A, B, C, SIX = (endpoint(host) for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"))


def found(*endpoints: Endpoint, unanswered: tuple[tuple[str, int], ...] = ()) -> Found:
    return Found(endpoints, 5.0, frozenset(unanswered))  # type: ignore[arg-type]


def test_a_plain_name_is_one_member_that_stays_as_long_as_its_address_is_offered() -> None:
    assert settle(Kind.NAME, (), found(B, A)) == (B,)
    assert settle(Kind.NAME, (A,), found(B, A)) == (A,)
    assert settle(Kind.NAME, (A,), found(B, C)) == (B,)


def test_all_addresses_are_members_and_rotation_changes_nothing() -> None:
    assert settle(Kind.ALL, (), found(B, A, SIX)) == (B, A, SIX)
    assert settle(Kind.ALL, (A, B, SIX), found(SIX, B, A)) == (A, B, SIX)
    assert settle(Kind.ALL, (A, B), found(C, B)) == (B, C)


def test_who_was_not_heard_of_stays() -> None:
    silent_six = found(B, unanswered=(("app:80", 6),))
    assert settle(Kind.ALL, (A, SIX), silent_six) == (SIX, B)
    assert settle(Kind.ALL, (A, SIX), found(B)) == (B,)


def test_each_target_of_a_service_is_one_member_with_the_weight_of_its_record() -> None:
    first, second = endpoint("10.0.0.1", "a:80"), endpoint("10.0.0.2", "a:80")
    other = endpoint("10.0.0.9", "b:80", 5)
    assert settle(Kind.SRV, (), found(first, second, other)) == (first, other)
    assert settle(Kind.SRV, (second,), found(first, second, other)) == (second, other)
    heavy = second._replace(weight=9)
    assert settle(Kind.SRV, (second, other), found(heavy, other)) == (heavy, other)
    gone = settle(Kind.SRV, (second, other), found(first, unanswered=(("b:80", 4),)))
    assert gone == (other, first)


def test_two_targets_with_one_address_are_one_member() -> None:
    assert settle(Kind.SRV, (), found(A, A._replace(name="b:80"))) == (A,)


ENDPOINTS = st.lists(st.integers(0, 600).map(lambda n: endpoint(f"10.0.{n // 250}.{n % 250}")))


@given(st.sampled_from([Kind.NAME, Kind.ALL, Kind.SRV]), ENDPOINTS, ENDPOINTS)
def test_the_same_answer_twice_changes_nothing_and_no_answer_is_too_large(
    kind: Kind, before: list[Endpoint], offered: list[Endpoint]
) -> None:
    present = settle(kind, (), found(*before))
    now = settle(kind, present, found(*offered))
    assert len(now) <= MAX_ENDPOINTS
    assert settle(kind, now, found(*reversed(offered))) == now
    stays = {one.address for one in present} & {one.address for one in offered}
    if kind is Kind.ALL:
        assert {one.address for one in now[: len(stays)]} == stays


def test_of_a_large_answer_those_that_are_there_stay() -> None:
    many = [endpoint(f"10.1.{n // 250}.{n % 250}") for n in range(2000)]
    present = settle(Kind.ALL, (), found(*many))
    assert settle(Kind.ALL, present, found(*reversed(many))) == present
