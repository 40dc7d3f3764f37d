"""A service is compared under every scheme that can run it; the others are named in notes."""

import tomllib
from typing import Any

import pytest

from penstock_supervisor.compare.variants import (
    NAMES,
    OVER_PORTS,
    Variant,
    as_toml,
    choose,
    parse_names,
)
from penstock_supervisor.config.loader import Config, Service, load


def service(**keys: Any) -> Service:
    (one,) = load(None, {"app": "a:b", **keys}).services
    return one


def chosen(one: Service) -> dict[str, Service]:
    return {variant.name: variant.service for variant in choose(one, NAMES, "/tmp/x").variants}


def test_every_scheme_is_compared_and_ports_in_two_modes_and_over_both_links() -> None:
    found = chosen(service())
    assert tuple(found) == NAMES
    assert [(one.scheme, one.mode) for one in found.values()] == [
        ("ports", "http"), ("ports", "http"), ("ports", "tcp"), ("handoff", "http"),
        ("shared", "http"), ("reuseport", "http"),
    ]  # fmt: skip
    assert {name for name, one in found.items() if one.wants_sockets} == {"ports/http", "ports/tcp"}


def test_each_variant_gets_a_free_port_and_writes_no_access_log() -> None:
    one = service(listen="0.0.0.0:80", access_log="stdout")
    for variant in choose(one, NAMES, "/tmp/x").variants:
        assert variant.service.listen == "127.0.0.1:0"
        assert variant.service.access_log == "off"
        assert variant.config.admin == "127.0.0.1:0"


def test_each_variant_on_a_unix_socket_gets_its_own_path_and_none_is_reuseport() -> None:
    choice = choose(service(listen="unix:/run/web"), NAMES, "/tmp/x")
    names = [variant.service.listen for variant in choice.variants]
    assert len(set(names)) == 5
    assert all(name.startswith("unix:/tmp/x/") for name in names)
    (note,) = choice.notes
    assert note.startswith("reuseport is not compared: a unix socket has no port to share")


def test_a_command_is_not_compared_under_handoff_and_a_note_gives_the_reason() -> None:
    (one,) = load(None, {"command": ("node", "server.js")}).services
    choice = choose(one, NAMES, "/tmp/x")
    assert [variant.name for variant in choice.variants] == [
        "ports/http", "ports/tcp", "shared", "reuseport",
    ]  # fmt: skip
    link, handoff = choice.notes
    assert link == f"{OVER_PORTS} is not compared: its workers are reached over their ports anyway"
    assert handoff.startswith("handoff is not compared: ")
    assert "command" in handoff


def test_upstreams_are_compared_under_ports_only() -> None:
    (one,) = load(None, {"upstreams": ["127.0.0.1:1"]}).services
    choice = choose(one, NAMES, "/tmp/x")
    assert [variant.name for variant in choice.variants] == ["ports/http", "ports/tcp"]
    assert len(choice.notes) == 4


def test_a_key_is_left_out_only_for_schemes_that_refuse_it() -> None:
    found = chosen(service(balance="client_hash", workers=3))
    assert {name: one.balance for name, one in found.items()} == {
        "ports/http": "client_hash", "ports/http/tcp": "client_hash", "ports/tcp": "client_hash",
        "handoff": "client_hash", "shared": "round_robin", "reuseport": "round_robin",
    }  # fmt: skip
    assert all(one.workers == 3 for one in found.values())


def test_a_health_path_is_left_out_where_a_command_cannot_be_checked() -> None:
    (one,) = load(None, {"command": ("node",)}).services
    one = one.model_copy(update={"health": one.health.model_copy(update={"path": "/ok"})})
    found = chosen(one)
    assert found["ports/http"].health.path == "/ok"
    assert found["shared"].health.path is None


def test_a_service_keeps_its_mode_where_the_variant_names_none() -> None:
    found = chosen(service(mode="tcp"))
    assert found["handoff"].mode == "tcp"
    assert found["ports/http"].mode == "http"


def test_both_links_of_an_app_can_be_compared() -> None:
    found = {one.name: one.service for one in choose(service(), NAMES, "/tmp/x").variants}
    assert found["ports/http"].wants_sockets
    assert not found[OVER_PORTS].wants_sockets
    (command,) = load(None, {"command": ("node", "server.js")}).services
    (note,) = choose(command, [OVER_PORTS], "/tmp/x").notes
    assert note.endswith("is not compared: its workers are reached over their ports anyway")


def test_a_variant_is_unchanged_after_serialization() -> None:
    one = service(workers=3, balance="random")
    for variant in choose(one, NAMES, "/tmp/x").variants:
        config = variant.config
        assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ports", ("ports/http", "ports/http/tcp", "ports/tcp")),
        ("shared, ports/tcp", ("ports/tcp", "shared")),
        ("reuseport,handoff,", ("handoff", "reuseport")),
        (",".join(reversed(NAMES)), NAMES),
    ],
)
def test_schemes_are_separated_by_commas(text: str, expected: tuple[str, ...]) -> None:
    assert parse_names(text) == expected


@pytest.mark.parametrize("text", ["", ",", "port", "ports/udp", "shared;handoff"])
def test_an_unknown_scheme_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected some of ports/http, ports/http/tcp, ports/tcp"):
        parse_names(text)


def test_the_configuration_is_shown_as_toml_without_values_of_env() -> None:
    one = service(workers=3).model_copy(
        update={
            "env": {"KEY": "secret", "B": ""},
            "health": service().health.model_copy(update={"path": "/ok", "interval": 0.5}),
            "limits": service().limits.model_copy(update={"head": 4096}),
            "ejection": service().ejection.model_copy(update={"max_ejected": 0.25}),
            "weights": (1, 2, 3),
        }
    )
    text = as_toml(one)
    table = tomllib.loads(text)["service"]["web"]
    assert table == {
        "app": "a:b",
        "workers": 3,
        "weights": [1, 2, 3],
        "env": {"KEY": "(not shown)", "B": "(not shown)"},
        "health": {"path": "/ok", "interval": "0.5s"},
        "limits": {"head": "4096B"},
        "ejection": {"max_ejected": "25%"},
    }
    assert "secret" not in text


def test_the_shown_configuration_can_be_read_back() -> None:
    one = chosen(service(workers=3, balance="least_connections"))["ports/http"]
    table = tomllib.loads(as_toml(one))["service"]["web"]
    again = Service.model_validate({**table, "name": "web", "listen": one.listen})
    assert again.model_copy(update={"access_log": "off"}) == one


def test_the_configuration_of_a_variant_has_only_its_service() -> None:
    one = service()
    assert Variant("x", one).config.services == (one,)


def test_schemes_with_a_proxy_get_the_given_number_of_proxies() -> None:
    one = service()
    made = {v.name: v.config.proxies for v in choose(one, NAMES, "/tmp/x", 2).variants}
    assert made.pop("shared") == made.pop("reuseport") == 1
    assert set(made.values()) == {2}
    assert tomllib.loads(as_toml(one, 2))["proxies"] == 2
    assert "proxies" not in tomllib.loads(as_toml(one))
