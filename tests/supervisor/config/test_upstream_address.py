"""An upstream is an address or a name, and what it is not is said in words."""

import pytest
from pydantic import ValidationError

from penstock_proxy.net.address import Address
from penstock_supervisor.config.loader import ConfigError, load
from penstock_supervisor.config.model import Dns, Upstream
from penstock_supervisor.config.upstream_address import Kind, parse_upstream


@pytest.mark.parametrize(
    ("text", "kind", "address"),
    [
        ("127.0.0.1:80", Kind.FIXED, Address("127.0.0.1", 80)),
        ("[::1]:80", Kind.FIXED, Address("::1", 80)),
        ("[fe80::1%eth0]:80", Kind.FIXED, Address("fe80::1%eth0", 80)),
        ("unix:/run/x", Kind.FIXED, Address(path="/run/x")),
        ("app.internal:80", Kind.NAME, Address("app.internal", 80)),
        ("dns:80", Kind.NAME, Address("dns", 80)),
        ("dns:app:80", Kind.ALL, Address("app", 80)),
        ("dns+srv:_http._tcp.app", Kind.SRV, Address("_http._tcp.app")),
    ],
)
def test_every_form_is_known(text: str, kind: Kind, address: Address) -> None:
    assert parse_upstream(text) == (kind, address)


@pytest.mark.parametrize(
    "text",
    [
        "app.internal", "app:0", "dns:app:0", "dns:127.0.0.1:80", "dns:unix:/x", "dns:", "dns+srv:",
        "dns+srv:a..b", "dns+srv:_http._tcp.app:80", f"dns+srv:{'a' * 64}.b", "dns+srv:a b",
        f"dns+srv:{'a.' * 130}a",
    ],
)  # fmt: skip
def test_what_is_none_of_them_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_upstream(text)


def test_a_weight_belongs_to_every_form_but_one() -> None:
    weights = [Upstream.model_validate(text).weight for text in ("dns:a:1 weight=3", "a:1")]
    assert weights == [3, 1]
    with pytest.raises(ValidationError, match="its records have their own"):
        Upstream.model_validate("dns+srv:_http._tcp.app weight=3")


def test_name_servers_are_addresses() -> None:
    known = Dns.model_validate({"servers": ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:5353"]})
    assert known.servers == ("127.0.0.1:53", "127.0.0.1:5353", "[::1]:53", "[::1]:5353")
    assert Dns.model_validate(known.model_dump(mode="json")) == known
    for wrong in ("ns.example", "ns.example:53", "127.0.0.1:0", "unix:/x", "127.0.0.1:99999"):
        with pytest.raises(ValidationError, match="expected an address of a name server"):
            Dns.model_validate({"servers": [wrong]})


def test_what_is_wrong_is_told_with_its_option() -> None:
    with pytest.raises(ConfigError, match=r"--to: expected a name after dns:"):
        load(None, {"upstreams": ["dns:127.0.0.1:80"]})
