"""The numbers of upstreams: an address keeps its own, whatever is added before it or removed."""

from penstock_proxy.net.address import parse_address
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.rollout.revision import Revision, number_upstreams, numbers_given


def revision(before: Revision | None, *upstreams: str) -> Revision:
    web = Service.model_validate({"name": "web", "listen": "127.0.0.1:1", "upstreams": upstreams})
    app = Service.model_validate({"name": "app", "listen": "127.0.0.1:2", "app": "a:b"})
    resolved = {"web": [parse_address(one) for one in upstreams]}
    numbered = number_upstreams((web, app), resolved, before)
    given = numbers_given(numbered, before)
    return Revision(1, Config(services=(web, app)), numbered, {}, upstreams_numbered=given)


def numbers(of: Revision) -> list[int]:
    return [member.number for member in of.upstreams["web"]]


def test_at_the_start_the_number_is_the_place() -> None:
    assert numbers(revision(None, "a:1", "b:1", "c:1")) == [0, 1, 2]


def test_an_address_keeps_its_number_and_no_other_gets_it() -> None:
    first = revision(None, "a:1", "b:1", "c:1")
    second = revision(first, "d:1", "c:1", "b:1")
    assert numbers(second) == [3, 2, 1]


def test_a_number_is_not_given_again_after_its_upstream_went() -> None:
    shorter = revision(revision(None, "a:1", "b:1"), "a:1")
    assert numbers(revision(shorter, "a:1", "c:1")) == [0, 2]


def test_services_are_found_by_name() -> None:
    assert revision(None, "a:1").services["app"].app == "a:b"
