"""A service becomes the plans of its workers, and a proxy gets their addresses and states."""

from collections.abc import Sequence
from typing import Any

import pytest

from penstock_proxy.config import ProxyConfig, Target
from penstock_proxy.net.address import Address
from penstock_supervisor.children.plan import (
    ChildPlan,
    WorkerContext,
    awaiting_accept,
    proxy_config,
    proxy_plan,
    worker_plan,
    worker_weight,
)
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.names.answers import Endpoint
from penstock_supervisor.names.upstream_member import UpstreamMember
from penstock_worker.net import trusted_proxies

ADDRESSES = (Address("127.0.0.1", 8101), Address("127.0.0.1", 8102))


def service(**keys: Any) -> Service:
    return Service.model_validate({"name": "web", "listen": "127.0.0.1:8000", **keys})


SERVICE_ADDRESS = Address("127.0.0.1", 8000)


def plans(
    service_: Service, *, service_address: Address = SERVICE_ADDRESS, **environment: str
) -> tuple[ChildPlan, ...]:
    context = WorkerContext(
        environment=environment, python="/python", service_address=service_address, stdout=70
    )
    ports = ADDRESSES if service_.scheme == "ports" else (None, None)
    return tuple(
        worker_plan(service_, slot, own_address, context) for slot, own_address in enumerate(ports)
    )


def test_an_app_runs_in_the_penstock_runtime_with_a_channel() -> None:
    first, second = plans(service(app="shop.web:app"))
    assert first.argv == ("/python", "-m", "penstock_worker.serve", "shop.web:app")
    assert first.runs_our_code
    assert (first.name, second.name) == ("web/0", "web/1")
    assert (first.address, second.address) == ADDRESSES
    assert first.config_table == "service.web"


def test_a_command_gets_its_port_wherever_its_placeholder_is() -> None:
    first, second = plans(service(command=["node", "server.js", "--listen=:{port}", "{port}"]))
    assert first.argv == ("node", "server.js", "--listen=:8101", "8101")
    assert second.argv[-1] == "8102"
    assert not first.runs_our_code


def test_a_worker_gets_its_slot_and_address_in_its_environment() -> None:
    _, second = plans(service(command=["x"], env={"COLOUR": "blue"}), PATH="/bin", COLOUR="red")
    assert dict(second.environment) == {
        "PATH": "/bin",
        "COLOUR": "blue",
        "PORT": "8102",
        "HOST": "127.0.0.1",
        "PENSTOCK_SCHEME": "ports",
        "PENSTOCK_SERVICE": "web",
        "PENSTOCK_SLOT": "1",
        "NODE_APP_INSTANCE": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize(
    ("keys", "terms"),
    [
        ({"app": "a:b", "accept_proxy": True}, None),
        ({"app": "a:b", "accept_proxy": True, "scheme": "handoff"}, (10.0, ("10.0.0.0/8",))),
        ({"app": "a:b", "accept_proxy": True, "scheme": "shared"}, (10.0, ("10.0.0.0/8",))),
        ({"app": "a:b", "scheme": "shared"}, None),
        ({"app": "a:b", "send_proxy": "v2"}, (10.0, ("127.0.0.0/8", "::1"))),
        ({"command": ["x"], "send_proxy": "v2"}, None),
    ],
)
def test_the_environment_of_a_worker_shows_whether_connections_begin_with_a_header(
    keys: dict[str, Any], terms: tuple[float, tuple[str, ...]] | None
) -> None:
    first, _ = plans(service(**keys, trusted_proxies=["10.0.0.0/8"]))
    assert trusted_proxies.parse_accept_proxy(first.environment) == terms


def test_the_environment_can_turn_buffered_output_on() -> None:
    first, _ = plans(service(command=["x"]), PYTHONUNBUFFERED="")
    assert first.environment["PYTHONUNBUFFERED"] == ""


@pytest.mark.parametrize(
    ("scheme", "inherits_listener", "link_count"),
    [("ports", False, 0), ("handoff", False, 3), ("shared", True, 0), ("reuseport", True, 0)],
)
def test_a_scheme_decides_where_connections_come_from(
    scheme: str, inherits_listener: bool, link_count: int
) -> None:
    context = WorkerContext(
        environment={}, python="python", service_address=SERVICE_ADDRESS, proxies=3
    )
    own_address = ADDRESSES[0] if scheme == "ports" else None
    plan = worker_plan(service(app="a:b", scheme=scheme), 0, own_address, context)
    assert (plan.inherits_listener, plan.link_count) == (inherits_listener, link_count)
    assert (plan.address is None) is (scheme != "ports")
    assert plan.environment["PENSTOCK_SCHEME"] == scheme


def test_a_command_with_a_socket_can_have_its_descriptor_as_an_argument() -> None:
    service_ = service(command=["uvicorn", "--fd", "{fd}", "--port={port}"], scheme="shared")
    assert plans(service_)[0].argv == ("uvicorn", "--fd", "3", "--port=8000")


def test_with_a_unix_socket_there_is_no_port_in_the_environment() -> None:
    service_ = service(listen="unix:/run/x.sock", app="a:b", scheme="shared")
    environment = plans(service_, service_address=Address(path="/run/x.sock"))[0].environment
    assert "PORT" not in environment
    assert "HOST" not in environment


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        ({}, "json:70"),
        ({"access_log_format": "combined"}, "combined:70"),
        ({"access_log": "/var/log/x.log"}, "json:/var/log/x.log"),
        ({"access_log": "off"}, None),
        ({"mode": "tcp"}, None),
        ({"scheme": "ports"}, None),
    ],
)
def test_without_a_proxy_that_reads_requests_the_worker_writes_the_access_log(
    keys: dict[str, Any], written: str | None
) -> None:
    plan, _ = plans(service(app="a:b", **{"scheme": "handoff", **keys}))
    assert plan.environment.get("PENSTOCK_ACCESS_LOG") == written
    assert plan.inherited_fds == ((70,) if written and written.endswith(":70") else ())


def test_a_proxy_has_the_longest_stop_timeout_of_its_services() -> None:
    config = Config(
        admin="",
        services=(
            service(app="a:b", timeouts={"stop": "5s", "start": "1s"}),
            service(name="api", app="a:b", timeouts={"stop": "60s"}),
        ),
    )
    plan = proxy_plan(config, 0, [7, 8], {"A": "b"}, ["proxy"])
    assert (plan.start_s, plan.stop_s) == (30, 60)
    assert (plan.name, plan.config_table, plan.inherited_fds) == ("proxy/0", "", (7, 8))


def test_a_service_without_a_proxy_does_not_extend_the_stop_timeout_of_proxies() -> None:
    slow = service(name="api", app="a:b", scheme="shared", timeouts={"stop": "60s"})
    config = Config(admin="", services=(service(app="a:b", timeouts={"stop": "5s"}), slow))
    assert proxy_plan(config, 0, [7], {}, ["proxy"]).stop_s == 5


def config_of_proxy(
    config: Config,
    *workers: Target,
    up: tuple[int, ...] = (),
    upstreams: Sequence[UpstreamMember] = (),
    proxy: int = 0,
) -> ProxyConfig:
    return proxy_config(
        config,
        proxy,
        {"web": (7,)},
        {"web": upstreams},
        {"web": workers},
        up=lambda member: member in {("web", number) for number in up},
    )


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_proxy_gets_the_workers_that_there_are_now(scheme: str) -> None:
    web = service(app="a:b", scheme=scheme, balance="client_hash", limits={"head": "8KiB"})
    workers = (
        Target(member=5, slot=0, address="", weight=3),
        Target(member=6, slot=0, address="127.0.0.1:8102", joined=True, up=True),
    )
    (proxy,) = config_of_proxy(Config(admin="", services=(web,)), *workers).services
    assert (proxy.scheme, proxy.targets) == (scheme, workers)
    assert (proxy.name, proxy.listeners, proxy.balance) == ("web", (7,), "client_hash")
    assert (proxy.limits, proxy.timeouts) == (web.limits, web.timeouts)


def test_the_weight_of_a_worker_is_that_of_its_slot() -> None:
    web = service(app="a:b", weights=[3, 2], workers=2)
    assert [worker_weight(web, slot) for slot in range(3)] == [3, 2, 1]


def test_a_proxy_does_not_get_services_without_a_proxy() -> None:
    web = service(app="a:b", scheme="reuseport")
    assert config_of_proxy(Config(admin="", services=(web,))).services == ()


def test_upstreams_are_always_joined() -> None:
    web = service(upstreams=["localhost:9001", "unix:/run/x.sock weight=3"])
    members = (
        UpstreamMember(4, 0, Endpoint(Address("127.0.0.1", 9001), 1, "localhost:9001"), 1),
        UpstreamMember(1, 1, Endpoint(Address(path="/run/x.sock")), 3),
    )
    (proxy,) = config_of_proxy(
        Config(admin="", services=(web,)), up=(1,), upstreams=members
    ).services
    assert [target.name for target in proxy.targets] == ["localhost:9001", ""]
    assert [(t.member, t.slot, t.address, t.weight, t.joined, t.up) for t in proxy.targets] == [
        (4, 0, "127.0.0.1:9001", 1, True, False),
        (1, 1, "unix:/run/x.sock", 3, True, True),
    ]
    assert all(target.upstream for target in proxy.targets)


def test_the_configuration_of_a_proxy_survives_the_channel() -> None:
    config = config_of_proxy(
        Config(admin="", services=(service(app="a:b", trusted_proxies=["10.0.0.0/8"]),))
    )
    assert ProxyConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_proxy_has_its_slot_and_its_share() -> None:
    web = service(app="a:b", max_connections=5)
    config = Config(admin="", proxies=2, services=(web,))
    assert [proxy_plan(config, slot, [7], {}, ["x"]).name for slot in (0, 1)] == [
        "proxy/0",
        "proxy/1",
    ]
    shares = [config_of_proxy(config, proxy=slot).services[0].max_connections for slot in (0, 1)]
    assert shares == [3, 2]


@pytest.mark.parametrize("scheme", ["ports", "handoff", "shared", "reuseport"])
@pytest.mark.parametrize("program", [{"app": "a:b"}, {"command": ["x", "{port}"]}])
def test_only_an_app_that_accepts_by_itself_can_wait_for_accept(
    scheme: str, program: dict[str, Any]
) -> None:
    context = WorkerContext(environment={}, python="python", service_address=SERVICE_ADDRESS)
    own_address = ADDRESSES[0] if scheme == "ports" else None
    plan = worker_plan(service(**program, scheme=scheme), 0, own_address, context)
    assert not plan.awaits_accept
    can = "app" in program and scheme in ("shared", "reuseport")
    assert awaiting_accept(plan).awaits_accept is can
