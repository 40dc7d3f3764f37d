"""A changed key needs what it says, and new processes exactly if theirs would be others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.children import plan
from penstock_supervisor.config.changes import (
    EVERYTHING,
    RUN_NEEDS,
    Changes,
    Need,
    compare,
    need_of,
    service_of,
    values,
)
from penstock_supervisor.config.model import Config, Service

OTHER: dict[str, Any] = {
    "listen": "127.0.0.1:8001", "socket_mode": "0600", "scheme": "shared", "mode": "tcp",
    "app": "shop.web:other", "command": ("node", "other.js"), "upstreams": ("127.0.0.1:9009",),
    "workers": 3, "weights": (2, 3), "worker_ports": "8101-8199", "env": {"DEPTH": "2"},
    "directory": "/srv", "stop_signal": "QUIT", "stop_to": "leader", "access_log": "off",
    "access_log_format": "combined", "on_uncaught": "retire", "balance": "random",
    "trusted_proxies": ("10.0.0.0/8",), "send_proxy": "v2", "accept_proxy": True,
    "sni": {"db.example": "db"}, "max_connections": 100, "handoff_window": 9,
    "abort_on_close": True,
    "restart.max_restarts": 7, "restart.within": "70s", "restart.backoff": "200ms",
    "restart.backoff_max": "11s", "restart.retry_after": "31s", "liveness.timeout": "9s",
    "health.path": "/ready", "health.interval": "3s", "health.timeout": "2s", "health.rise": 3,
    "health.fall": 4, "health.slow_start": "9s", "health.restart_after": "90s",
    "ejection.failures": 9, "ejection.share": "60%", "ejection.requests": 30,
    "ejection.eject_for": "11s", "ejection.max_ejected": "60%", "ejection.panic": "30%",
    "retries.attempts": 3, "retries.on": ("connect",), "retries.budget": "30%",
    "retries.min_per_second": 4, "timeouts.connect": "6s", "timeouts.head": "11s",
    "timeouts.body": "31s", "timeouts.response": "61s", "timeouts.total": "90s",
    "timeouts.keepalive": "76s", "timeouts.tunnel": "2h", "timeouts.half_closed": "2m",
    "timeouts.handshake": "11s", "timeouts.queue": "3s", "timeouts.start": "31s",
    "timeouts.stop": "31s",
    "limits.head": "17KiB", "limits.headers": 101, "limits.target": "9KiB", "limits.body": "2GiB",
    "limits.min_rate": "600B", "limits.response_head": "65KiB", "limits.requests": 10001,
    "limits.handshakes": 513, "limits.connections_per_client": "60%", "limits.queue": 1025,
    "limits.per_worker": 9, "limits.queue_per_worker": 9, "limits.buffer": "65KiB",
    "limits.log_field": "2KiB", "forwarding.x_forwarded": False, "forwarding.forwarded": True,
    "forwarding.via": "", "forwarding.trust": "forwarded", "tls.cert": "a.pem",
    "tls.key": "a.key", "tls.certificates": ({"cert": "a", "key": "b"},), "tls.client_ca": "c",
    "tls.client_certificates": "optional", "tls.min_version": "1.3",
    "rollout.surge": 2, "rollout.watch": "9s", "rollout.canary": "5m",
    "link": "tcp",
}  # fmt: skip
"""Another value for each key."""
KEYS = [key for key, _ in values(Service(name="web", listen="127.0.0.1:8000")) if key != "name"]

BASES: dict[str, dict[str, Any]] = {
    "ports app": {"app": "shop.web:app"},
    "ports app, send_proxy": {"app": "shop.web:app", "send_proxy": "v1"},
    "ports command": {"command": ("node", "server.js", "{port}"), "send_proxy": "v1"},
    "ports command, unix": {"command": ("node", "server.js", "{socket}"), "link": "unix"},
    "handoff": {"app": "shop.web:app", "scheme": "handoff"},
    "handoff, unix": {"app": "shop.web:app", "scheme": "handoff", "listen": "unix:/run/w"},
    "handoff, off": {"app": "shop.web:app", "scheme": "handoff", "access_log": "off"},
    "handoff, tcp": {"app": "shop.web:app", "scheme": "handoff", "mode": "tcp"},
    "handoff, headers": {
        "app": "shop.web:app", "scheme": "handoff", "accept_proxy": True,
        "trusted_proxies": ("10.0.0.0/9",),
    },
    "shared": {"app": "shop.web:app", "scheme": "shared"},
    "shared, bounded": {"app": "shop.web:app", "scheme": "shared", "max_connections": 9},
    "shared command": {"command": ("node", "{fd}"), "scheme": "shared"},
    "reuseport": {"app": "shop.web:app", "scheme": "reuseport", "max_connections": 8},
    "udp": {"app": "shop.web:app", "scheme": "reuseport", "mode": "udp", "max_connections": 8},
}  # fmt: skip
"""A service of each kind."""


def service(**keys: Any) -> Service:
    """Keys of tables as `table.key`."""
    table: dict[str, Any] = {"name": "web", "listen": "127.0.0.1:8000"}
    for key, value in keys.items():
        head, _, rest = key.partition(".")
        if rest:
            table[head] = {**table.get(head, {}), rest: value}
        else:
            table[head] = value
    return Service.model_validate(table)


def config(*services: Service, **keys: Any) -> Config:
    return Config(services=services or (service(app="shop.web:app"),), **keys)


def changed(key: str, base: dict[str, Any]) -> tuple[Service, Service]:
    value = OTHER[key]
    if key == "listen" and base.get("listen", "").startswith("unix:"):
        value = "unix:/run/other"
    if base.get(key) == value:
        value = {"accept_proxy": False, "access_log": "stdout"}[key]
    return service(**base), service(**{**base, key: value})


def plans(one: Service) -> list[plan.ChildPlan]:
    """What its first two workers are started with, without what only the supervisor acts on."""
    context = plan.WorkerContext(
        environment={}, python="python", directory=one.directory,
        service_address=address(one.listen), stdout=7,
        sockets=Path("/run/penstock/1.workers"),
    )  # fmt: skip
    found = []
    for slot in range(2):
        # A worker's own port may be another one when the range is.
        port = 8101 if one.worker_ports else 4000
        own = Address("127.0.0.1", port + slot) if one.has_ports else None
        made = plan.worker_plan(one, slot, own, context)
        found.append(
            replace(
                made, start_s=0, stop_s=0, stop_signal="", stop_to="leader",
                restart=plan.PROXY_RESTART, health=None,
            )
        )  # fmt: skip
    return found


def address(text: str) -> Address:
    if text.startswith("unix:"):
        return Address("", 0, text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return Address(host, int(port))


def test_every_key_says_what_it_needs() -> None:
    assert all(need_of(key) for key in KEYS)
    assert RUN_NEEDS.keys() == Config.model_fields.keys() - {"services"}


def test_every_key_has_another_value_here() -> None:
    assert set(KEYS) - OTHER.keys() == set()


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("key", [one for one in KEYS if one not in ("scheme", "mode", "upstreams")])
def test_processes_are_replaced_exactly_if_they_are_started_with_something_else(
    key: str, kind: str
) -> None:
    base = dict(BASES[kind])
    if key in ("app", "command") and key not in base:
        # One program instead of another.
        del base["command" if key == "app" else "app"]
        old, new = service(**BASES[kind]), service(**base, **{key: OTHER[key]})
    else:
        old, new = changed(key, base)
    found = compare(config(old), config(new)).kept["web"]
    # A listening socket is inherited, and no plan has its address.
    is_inherited = key == "listen" and not new.has_proxy
    assert (Need.PROGRAM in found.needs) == (plans(old) != plans(new) or is_inherited)
    assert found.needs


@pytest.mark.parametrize(
    ("kind", "key", "needs"),
    [
        ("ports app", "timeouts.stop", {Need.SETTINGS, Need.SUPERVISOR}),
        ("ports app", "health.path", {Need.SETTINGS}),
        ("shared", "health.path", {Need.SUPERVISOR}),
        ("ports app", "liveness.timeout", {Need.SUPERVISOR}),
        ("ports app", "restart.within", {Need.SUPERVISOR}),
        ("ports app", "timeouts.start", {Need.SUPERVISOR}),
        ("ports app", "listen", {Need.LISTEN}),
        ("shared", "listen", {Need.LISTEN, Need.PROGRAM}),
        ("handoff", "listen", {Need.LISTEN, Need.PROGRAM}),
        ("ports app", "access_log", {Need.SETTINGS}),
        ("handoff", "access_log", {Need.SETTINGS, Need.PROGRAM}),
        ("shared", "access_log", {Need.SUPERVISOR, Need.PROGRAM}),
        ("ports app", "tls.min_version", {Need.TLS}),
        ("ports app", "workers", {Need.WORKERS}),
        ("shared, bounded", "workers", {Need.WORKERS, Need.PROGRAM}),
        ("ports app", "env", {Need.PROGRAM}),
        ("ports app", "stop_signal", {Need.SUPERVISOR}),
        ("ports app", "scheme", {Need.RESTART}),
        ("ports app", "mode", {Need.RESTART}),
        ("handoff, unix", "socket_mode", {Need.RESTART}),
    ],
)
def test_a_change_needs(kind: str, key: str, needs: set[Need]) -> None:
    old, new = changed(key, BASES[kind])
    found = compare(config(old), config(new)).kept["web"].keys
    assert {change.key: change.needs for change in found}[key] == needs


def test_the_mode_of_a_socket_whose_address_changes_is_part_of_the_new_one() -> None:
    old = service(app="a:b", listen="unix:/run/a", socket_mode="0600")
    new = service(app="a:b", listen="unix:/run/b", socket_mode="0660")
    assert compare(config(old), config(new)).kept["web"].needs == {Need.LISTEN}


def test_a_program_does_not_become_upstreams_nor_upstreams_a_program() -> None:
    old, new = service(app="a:b"), service(upstreams=("127.0.0.1:9001",))
    for changes in (compare(config(old), config(new)), compare(config(new), config(old))):
        needs = {change.key: change.needs for change in changes.kept["web"].keys}
        assert needs == {"app": {Need.RESTART}, "upstreams": {Need.RESTART}}


def test_services_are_kept_added_and_removed_by_their_names() -> None:
    web, api = service(app="a:b"), Service(name="api", listen="127.0.0.1:9", app="c:d")
    changes = compare(config(web), config(api, web))
    assert (list(changes.kept), changes.added, changes.removed) == (["web"], ("api",), ())
    assert not changes.is_empty
    changes = compare(config(api, web), config(web))
    assert (list(changes.kept), changes.added, changes.removed) == (["web"], (), ("api",))
    assert service_of(changes.old, "api") is api
    with pytest.raises(KeyError):
        service_of(changes.new, "api")


def both(new_web: Service, **keys: Any) -> Changes:
    """`web` becomes that; `api` (handoff) and `to` (upstreams) stay."""
    api = Service(name="api", listen="127.0.0.1:9", app="c:d", scheme="handoff")
    to = Service.model_validate(
        {"name": "to", "listen": "127.0.0.1:10", "upstreams": ["127.0.0.1:11"]}
    )
    return compare(config(service(app="a:b"), api, to), config(new_web, api, to, **keys))


def test_without_a_change_a_reload_replaces_all_workers() -> None:
    changes = both(service(app="a:b"))
    assert changes.is_empty
    assert changes.replaced() == {"web", "api"}
    assert changes.replaced(("web",)) == {"web"}
    assert changes.replaced(("to",)) == set()
    # Somebody else has named none.
    assert changes.replaced(("web", EVERYTHING)) == {"web", "api"}


def test_with_a_change_only_workers_that_need_it_are_replaced() -> None:
    assert both(service(app="a:c")).replaced() == {"web"}
    assert both(service(app="a:c")).replaced(("api",)) == {"web", "api"}
    settings = both(service(app="a:b", balance="random"))
    assert settings.replaced() == set()
    assert settings.replaced(("web",)) == {"web"}
    assert settings.replaced(("web", EVERYTHING)) == {"web"}


def test_a_link_that_leads_elsewhere_is_a_change() -> None:
    changes = both(service(app="a:b"))
    assert changes.replaced((), {"web"}) == {"web"}
    assert changes.replaced(("web", EVERYTHING), {"web"}) == {"web"}
    assert changes.replaced(("api",), {"web"}) == {"web", "api"}
    assert both(service(app="a:c")).replaced((), {"api"}) == {"web", "api"}


def test_under_handoff_workers_are_replaced_for_another_number_of_proxies() -> None:
    assert both(service(app="a:b"), proxies=2).replaced() == {"api"}
