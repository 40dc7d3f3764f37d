"""A proxy's configuration is valid, and an invalid value is refused with a helpful error.

Covers `net/address`.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from penstock_proxy import config
from penstock_proxy.config import ProxyConfig, ServiceConfig, Target
from penstock_proxy.net.address import Address, parse_address

DURATION: TypeAdapter[float] = TypeAdapter(config.Duration)
POSITIVE: TypeAdapter[float] = TypeAdapter(config.Positive)
SIZE: TypeAdapter[int] = TypeAdapter(config.Size)
SHARE: TypeAdapter[float] = TypeAdapter(config.Share)
NETWORK: TypeAdapter[str] = TypeAdapter(config.Network)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (DURATION, "0s", 0.0),
        (DURATION, "250ms", 0.25),
        (DURATION, "1.5s", 1.5),
        (DURATION, "2m", 120.0),
        (DURATION, "1h", 3600.0),
        (DURATION, "7d", 604800.0),
        (DURATION, 0.25, 0.25),
        (POSITIVE, "1ms", 0.001),
        (SIZE, "0B", 0),
        (SIZE, "512B", 512),
        (SIZE, "16KiB", 16384),
        (SIZE, "64MiB", 64 << 20),
        (SIZE, "1GiB", 1 << 30),
        (SIZE, 7, 7),
        (SHARE, "0%", 0.0),
        (SHARE, "50%", 0.5),
        (SHARE, "100%", 1.0),
        (SHARE, 0.3, 0.3),
        (NETWORK, "10.0.0.0/8", "10.0.0.0/8"),
        (NETWORK, "10.1.2.3/8", "10.0.0.0/8"),
        (NETWORK, "192.0.2.1", "192.0.2.1/32"),
        (NETWORK, "2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_a_value_is_written_with_its_unit(kind: TypeAdapter[Any], text: Any, value: Any) -> None:
    assert kind.validate_python(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(DURATION, wrong) for wrong in ("", "5", "s", "-1s", "+1s", "1 s", " 1s", "1s\n", "1S", ".5s",
                                     "1.s", "1e3s", "1h30m", "٣s", -1, True, None, float("inf"),
                                     float("nan"), "9" * 400 + "s")]
    + [(POSITIVE, wrong) for wrong in ("0s", "0ms", 0, -0.5)]
    + [(SIZE, wrong) for wrong in ("", "5", "5K", "5KB", "5kib", "-1B", "1.5KiB", "1 KiB", "٣B",
                                   -1, 1.5, True, None)]
    + [(SHARE, wrong) for wrong in ("", "50", "101%", "-1%", "1000%", "0.5%", "50 %", "٣%",
                                    1.5, -0.1, True, None)]
    + [(NETWORK, wrong) for wrong in ("", "10.0.0.0/33", "10.0.0", "localhost", "::/129", "*")],
)  # fmt: skip
def test_a_value_that_could_mean_two_things_is_refused(
    kind: TypeAdapter[Any], wrong: object
) -> None:
    with pytest.raises(ValidationError):
        kind.validate_python(wrong)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[fe80::1%wg-0]:80", Address("fe80::1%wg-0", 80)),
        ("unix:/run/a b.sock", Address(path="/run/a b.sock")),
        ("unix:" + "a" * 107, Address(path="a" * 107)),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "a", ":80", "a:", "a:b", "a:-1", "a:65536", "a:123456", "a b:80", "a/b:80", "::1:80",
        "[::1]", "[::1]80", "[]:80", "a:80\n", "a:٣", "a,b:80", "http://a:80", "unix:",
        "unix:" + "a" * 108, "unix:" + "ä" * 54, "unix:a\0b",
    ],
)  # fmt: skip
def test_the_error_for_an_invalid_address_shows_a_valid_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        parse_address(text)


@pytest.mark.parametrize("text", ["80", ":80"])
def test_the_error_for_a_port_alone_suggests_hosts(text: str) -> None:
    with pytest.raises(ValueError, match=r'"127\.0\.0\.1:80" is this machine, "0\.0\.0\.0:80"'):
        parse_address(text)


@given(st.text(alphabet="[]:.%/0123456789abcdfunix", max_size=24))
def test_an_address_that_is_taken_survives_being_written(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("path", ["healthz", "", "/a b", "/ä", "/a\n", "http://a/"])
def test_a_health_path_is_a_path(path: str) -> None:
    with pytest.raises(ValidationError, match="expected a path"):
        config.Health(path=path)
    assert config.Health(path="/healthz?full=1").path == "/healthz?full=1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"unknown": 1},
        {"mode": "htpp"},
        {"balance": "roundrobin"},
        {"trusted_proxies": ["nowhere"]},
        {"max_connections": -1},
        {"max_connections": True},
        {"access_log_format": "xml"},
        {"health": {"rise": 0}},
        {"health": {"interval": "0s"}},
        {"ejection": {"failures": -1}},
        {"ejection": {"max_ejected": "150%"}},
        {"timeouts": {"connect": 0}},
        {"timeouts": {"conect": 1}},
        {"limits": {"head": "512B"}},
        {"limits": {"head": "2MiB"}},
        {"limits": {"headers": 0}},
        {"limits": {"headers": 1001}},
    ],
)
def test_a_service_with_senseless_settings_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as failure:
        config.ProxySettings.model_validate(wrong)
    assert failure.value.error_count() == 1


@pytest.mark.parametrize("wrong", [{"weight": 0}, {"weight": 101}, {"address": "nowhere"}])
def test_a_target_has_an_address_and_a_positive_weight(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Target.model_validate({"member": 0, "slot": 0, "address": "a:1"} | wrong)


def test_a_proxys_configuration_survives_json_unchanged() -> None:
    service = ServiceConfig(
        name="web",
        listeners=(3,),
        targets=(Target(member=0, slot=0, address="unix:/run/a", weight=3, joined=True, up=True),),
        trusted_proxies=("10.1.2.3/8",),
        health=config.Health(path="/healthz"),
        timeouts=config.Timeouts(total=2.5),
    )
    written = ProxyConfig(services=(service,))
    assert ProxyConfig.model_validate_json(written.model_dump_json()) == written


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        config.Health().rise = 5
