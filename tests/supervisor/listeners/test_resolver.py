"""Names of upstreams are resolved, and an unknown one is a clear error."""

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Service, Upstream
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.resolver import resolve


def service(*addresses: str) -> Service:
    upstreams = tuple(Upstream(address=address) for address in addresses)
    return Service(name="web", listen="127.0.0.1:0", upstreams=upstreams)


def test_a_name_is_resolved_and_numeric_addresses_stay() -> None:
    found = resolve([service("localhost:81", "[::1]:82", "unix:/tmp/x")])

    assert found == {
        "web": [Address("127.0.0.1", 81), Address("::1", 82), Address(path="/tmp/x")],
    }


def test_a_service_without_upstreams_has_nothing_to_resolve() -> None:
    assert resolve([Service(name="web", listen="127.0.0.1:0", app="a:b")]) == {}


def test_an_unknown_name_is_one_clear_line() -> None:
    with pytest.raises(StartError, match=r"service\.web\.upstreams: a\.invalid:80: unknown host"):
        resolve([service("a.invalid:80")])
