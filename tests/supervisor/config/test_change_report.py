"""A changed configuration is told in lines: what changed, whose workers go, and what is refused."""

from typing import Any

import pytest

from penstock_supervisor.config.change_report import lines, refused
from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.model import Config, Service

APP = {"app": "shop.web:app"}


def service(**table: Any) -> Service:
    return Service.model_validate({"name": "web", "listen": "127.0.0.1:8000", **table})


def told(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    """The lines for one service."""
    changes = compare(Config(services=(service(**old),)), Config(services=(service(**new),)))
    return lines(changes)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({}, {"timeouts": {"stop": "10s"}}, "web.timeouts.stop: 30s -> 10s"),
        ({}, {"timeouts": {"tunnel": "90m"}}, "web.timeouts.tunnel: 1h -> 90m"),
        ({}, {"timeouts": {"total": "500ms"}}, "web.timeouts.total: 0s -> 500ms"),
        ({}, {"limits": {"head": "1MiB"}}, "web.limits.head: 16KiB -> 1MiB"),
        ({}, {"limits": {"min_rate": "0B"}}, "web.limits.min_rate: 500B -> 0B"),
        ({}, {"retries": {"budget": "25%"}}, "web.retries.budget: 20% -> 25%"),
        (
            {}, {"limits": {"connections_per_client": 9}},
            "web.limits.connections_per_client: 50% -> 9",
        ),
        ({}, {"balance": "random"}, 'web.balance: "round_robin" -> "random"'),
        ({}, {"health": {"path": "/up"}}, 'web.health.path: none -> "/up"'),
        ({}, {"worker_ports": "8101-8199"}, "web.worker_ports: none -> 8101-8199"),
        ({}, {"link": "tcp"}, 'web.link: "auto" -> "tcp"'),
        ({}, {"weights": [1, 2]}, "web.weights: [] -> [1, 2]"),
        ({}, {"accept_proxy": True}, "web.accept_proxy: false -> true"),
        ({}, {"sni": {"db.example": "db"}}, "web.sni: db.example is added"),
        (
            {"env": {"A": "old", "B": "secret", "C": "1"}},
            {"env": {"A": "new", "D": "hidden", "C": "1"}},
            "web.env: D is added, B is removed, A is changed",
        ),
        (
            {"app": None, "upstreams": ["127.0.0.1:1", "127.0.0.1:2"]},
            {"app": None, "upstreams": ["127.0.0.1:2 weight=3", "127.0.0.1:4"]},
            "web.upstreams: 127.0.0.1:4 is added, 127.0.0.1:1 is removed, 127.0.0.1:2 is changed",
        ),
        (
            {"app": None, "command": ["node", "x" * 90]},
            {"app": None, "command": ["node", f"{'x' * 90}y"]},
            "web.command: changed",
        ),
        (
            {}, {"tls": {"certificates": [{"cert": "a.pem", "key": "a.key"}]}},
            'web.tls.certificates: [] -> [{"cert": "a.pem", "key": "a.key"}]',
        ),
    ],
)  # fmt: skip
def test_a_change_is_a_line_as_in_the_file(
    old: dict[str, Any], new: dict[str, Any], line: str
) -> None:
    assert told({**APP, **old}, {**APP, **new})[0] == line


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        (APP, APP, ["2 workers are replaced"]),
        (APP, {**APP, "balance": "random"}, ["its workers are not replaced"]),
        (APP, {"app": "shop.web:other"}, ["2 workers are replaced"]),
        (APP, {**APP, "workers": 3}, ["its workers are not replaced", "1 worker is added"]),
        (
            {**APP, "workers": 4}, {"app": "shop.web:other", "workers": 1},
            ["1 worker is replaced", "3 workers are removed"],
        ),
    ],
)  # fmt: skip
def test_after_the_changes_the_lines_say_what_happens_to_the_workers(
    old: dict[str, Any], new: dict[str, Any], outcome: list[str]
) -> None:
    said = told(old, new)
    assert said[-len(outcome) :] == tuple(f"web: {one}" for one in outcome)


def test_a_service_that_is_left_alone_is_named() -> None:
    api = Service(name="api", listen="127.0.0.1:9", app="c:d")
    to = Service.model_validate(
        {"name": "to", "listen": "127.0.0.1:10", "upstreams": ["127.0.0.1:11"]}
    )
    old = Config(services=(service(**APP), api, to))
    new = Config(services=(service(app="x:y"), api, to), proxies=2)
    assert lines(compare(old, new)) == (
        "proxies: 1 -> 2",
        'web.app: "shop.web:app" -> "x:y"',
        "web: 2 workers are replaced",
        "api: unchanged, its workers are not replaced",
        "to: unchanged",
    )
    assert "api: 2 workers are replaced" in lines(compare(old, new), {"web", "api"})


def test_a_link_that_leads_elsewhere_replaces_workers_and_is_told() -> None:
    old = Config(services=(service(**APP, directory="/srv/current"),))
    new = Config(services=(service(**APP, directory="/srv/current", balance="random"),))
    assert lines(compare(old, new), moved={"web": "/srv/releases/43"}) == (
        'web.balance: "round_robin" -> "random"',
        "web.directory: leads to /srv/releases/43 now",
        "web: 2 workers are replaced",
    )
    other = Config(services=(service(**APP, directory="/srv/other"),))
    assert lines(compare(old, other), moved={"web": "/srv/other"}) == (
        'web.directory: "/srv/current" -> "/srv/other"',
        "web: 2 workers are replaced",
    )


def test_added_and_removed_services_are_named_with_what_they_are() -> None:
    api = Service(name="api", listen="127.0.0.1:9", command=("node", "a b.js"), workers=1)
    to = Service.model_validate(
        {"name": "to", "listen": "127.0.0.1:10", "upstreams": ["127.0.0.1:11", "127.0.0.1:12"]}
    )
    old, new = Config(services=(service(**APP),)), Config(services=(api, to))
    assert lines(compare(old, new)) == (
        "web: removed; what is open is finished",
        "api: added on 127.0.0.1:9: 1 worker of node 'a b.js'",
        "to: added on 127.0.0.1:10: 2 upstreams",
    )


@pytest.mark.parametrize(
    ("key", "value", "begin"),
    [
        ("admin", "", 'admin: "127.0.0.1:9464" -> ""; only a restart can change it: '),
        ("run_dir", "/run/x", 'run_dir: none -> "/run/x"; only a restart can change it: '),
        ("user", "www", 'user: none -> "www"; only a restart can change it: '),
        ("group", "www", 'group: none -> "www"; only a restart can change it: '),
        ("no_new_privileges", False, "no_new_privileges: true -> false; only a restart"),
    ],
)
def test_keys_of_the_run_are_refused_by_name(key: str, value: object, begin: str) -> None:
    old = Config(services=(service(**APP),))
    changed = Config.model_validate({"services": old.services, key: value})
    (problem,) = refused(compare(old, changed))
    assert problem.startswith(begin)
    # The number of proxies is another matter.
    assert refused(compare(old, Config(services=old.services, proxies=4))) == ()


@pytest.mark.parametrize(
    ("old", "new", "begin"),
    [
        (APP, {**APP, "scheme": "shared"}, 'service.web.scheme: "ports" -> "shared"; only a'),
        (APP, {**APP, "mode": "tcp"}, 'service.web.mode: "http" -> "tcp"; only a restart'),
        (
            {**APP, "listen": "unix:/run/a", "socket_mode": "0600"},
            {**APP, "listen": "unix:/run/a", "socket_mode": "0660"},
            'service.web.socket_mode: "0600" -> "0660"; only a restart',
        ),
        (APP, {"upstreams": ["127.0.0.1:1"]}, "service.web: only a restart can change it: a s"),
        ({"upstreams": ["127.0.0.1:1"]}, APP, "service.web: only a restart can change it: a s"),
    ],
)
def test_keys_of_a_service_are_refused_by_name(
    old: dict[str, Any], new: dict[str, Any], begin: str
) -> None:
    changes = compare(Config(services=(service(**old),)), Config(services=(service(**new),)))
    (problem,) = refused(changes)
    assert problem.startswith(begin)


def test_all_that_is_refused_is_named_at_once() -> None:
    old = Config(services=(service(**APP),))
    new = Config(services=(service(**APP, scheme="shared", mode="tcp"),), admin="")
    assert len(refused(compare(old, new))) == 3
    assert refused(compare(old, old)) == ()
