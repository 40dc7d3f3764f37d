"""A service becomes exactly the children it asks for, and a proxy that knows where they are."""

from collections.abc import Sequence
from typing import Any

import pytest

from penstock_proxy.config import ProxyConfig
from penstock_proxy.net.address import Address
from penstock_supervisor.children.plan import (
    ChildPlan,
    WorkerContext,
    proxy_config,
    proxy_plan,
    worker_plan,
)
from penstock_supervisor.config.model import Config, Service
from penstock_worker.net import trusted_proxies

PLACES = (Address("127.0.0.1", 8101), Address("127.0.0.1", 8102))


def service(**keys: Any) -> Service:
    return Service.model_validate({"name": "web", "listen": "127.0.0.1:8000", **keys})


MAIN = Address("127.0.0.1", 8000)


def plans(made: Service, *, main: Address = MAIN, **environment: str) -> tuple[ChildPlan, ...]:
    context = WorkerContext(environment=environment, python="/python", main=main, stdout=70)
    ports = PLACES if made.scheme == "ports" else (None, None)
    return tuple(worker_plan(made, slot, own, context) for slot, own in enumerate(ports))


def test_an_app_runs_in_our_runtime_with_a_channel() -> None:
    first, second = plans(service(app="shop.web:app"))
    assert first.argv == ("/python", "-m", "penstock_worker.serve", "shop.web:app")
    assert first.ours
    assert (first.name, second.name) == ("web/0", "web/1")
    assert (first.address, second.address) == PLACES
    assert first.origin == "service.web"


def test_a_command_gets_its_port_wherever_it_asks_for_it() -> None:
    first, second = plans(service(command=["node", "server.js", "--listen=:{port}", "{port}"]))
    assert first.argv == ("node", "server.js", "--listen=:8101", "8101")
    assert second.argv[-1] == "8102"
    assert not first.ours


def test_a_worker_is_told_who_and_where_it_is() -> None:
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
def test_a_worker_knows_whether_connections_begin_with_a_header(
    keys: dict[str, Any], terms: tuple[float, tuple[str, ...]] | None
) -> None:
    first, _ = plans(service(**keys, trusted_proxies=["10.0.0.0/8"]))
    assert trusted_proxies.parse_accept_proxy(first.environment) == terms


def test_who_wants_buffered_output_keeps_it() -> None:
    first, _ = plans(service(command=["x"]), PYTHONUNBUFFERED="")
    assert first.environment["PYTHONUNBUFFERED"] == ""


@pytest.mark.parametrize(
    ("scheme", "listens", "links"),
    [("ports", False, 0), ("handoff", False, 3), ("shared", True, 0), ("reuseport", True, 0)],
)
def test_a_scheme_says_where_connections_come_from(scheme: str, listens: bool, links: int) -> None:
    context = WorkerContext(environment={}, python="python", main=MAIN, proxies=3)
    own = PLACES[0] if scheme == "ports" else None
    plan = worker_plan(service(app="a:b", scheme=scheme), 0, own, context)
    assert (plan.listens, plan.links) == (listens, links)
    assert (plan.address is None) is (scheme != "ports")
    assert plan.environment["PENSTOCK_SCHEME"] == scheme


def test_a_command_that_is_given_a_socket_can_name_its_descriptor() -> None:
    made = service(command=["uvicorn", "--fd", "{fd}", "--port={port}"], scheme="shared")
    assert plans(made)[0].argv == ("uvicorn", "--fd", "3", "--port=8000")


def test_a_unix_socket_has_no_port_to_tell() -> None:
    made = service(listen="unix:/run/x.sock", app="a:b", scheme="shared")
    environment = plans(made, main=Address(path="/run/x.sock"))[0].environment
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
    assert plan.inherited == ((70,) if written and written.endswith(":70") else ())


def test_a_proxy_may_finish_what_its_most_patient_service_allows() -> None:
    config = Config(
        admin="",
        services=(
            service(app="a:b", timeouts={"stop": "5s", "start": "1s"}),
            service(name="api", app="a:b", timeouts={"stop": "60s"}),
        ),
    )
    plan = proxy_plan(config, 0, [7, 8], {"A": "b"}, ["proxy"])
    assert (plan.start_s, plan.stop_s) == (30, 60)
    assert (plan.name, plan.origin, plan.inherited) == ("proxy/0", "", (7, 8))


def test_a_proxy_does_not_wait_for_services_that_it_has_nothing_to_do_with() -> None:
    slow = service(name="api", app="a:b", scheme="shared", timeouts={"stop": "60s"})
    config = Config(admin="", services=(service(app="a:b", timeouts={"stop": "5s"}), slow))
    assert proxy_plan(config, 0, [7], {}, ["proxy"]).stop_s == 5


def told(
    config: Config,
    *joined: int,
    up: tuple[int, ...] = (),
    addresses: Sequence[Address] = PLACES,
    proxy: int = 0,
) -> ProxyConfig:
    return proxy_config(
        config,
        proxy,
        {"web": (7,)},
        {"web": addresses},
        joined=lambda _, slot: slot in joined,
        up=lambda _, slot: slot in up,
    )


def test_a_proxy_is_told_every_slot_and_who_is_there() -> None:
    web = service(app="a:b", weights=[3, 1], balance="client_hash", limits={"head": "8KiB"})
    (proxy,) = told(Config(admin="", services=(web,)), 1, up=(1,)).services
    assert [(t.slot, t.address, t.weight, t.joined, t.up) for t in proxy.targets] == [
        (0, "127.0.0.1:8101", 3, False, False),
        (1, "127.0.0.1:8102", 1, True, True),
    ]
    assert (proxy.name, proxy.listeners, proxy.balance) == ("web", (7,), "client_hash")
    assert (proxy.limits, proxy.timeouts) == (web.limits, web.timeouts)


def test_a_proxy_that_passes_connections_is_told_of_links_later() -> None:
    web = service(app="a:b", scheme="handoff", weights=[3, 1])
    (proxy,) = told(Config(admin="", services=(web,)), 0, 1, up=(1,), addresses=()).services
    assert proxy.scheme == "handoff"
    assert [(t.slot, t.address, t.weight, t.joined, t.up) for t in proxy.targets] == [
        (0, "", 3, False, False),
        (1, "", 1, False, False),
    ]


def test_a_proxy_hears_nothing_of_services_without_one() -> None:
    web = service(app="a:b", scheme="reuseport")
    assert told(Config(admin="", services=(web,))).services == ()


def test_upstreams_are_always_joined() -> None:
    web = service(upstreams=["localhost:9001", "unix:/run/x.sock weight=3"])
    addresses = (Address("127.0.0.1", 9001), Address(path="/run/x.sock"))
    (proxy,) = told(Config(admin="", services=(web,)), up=(1,), addresses=addresses).services
    assert [(t.address, t.weight, t.joined, t.up) for t in proxy.targets] == [
        ("127.0.0.1:9001", 1, True, False),
        ("unix:/run/x.sock", 3, True, True),
    ]


def test_what_a_proxy_is_told_survives_the_channel() -> None:
    config = told(Config(admin="", services=(service(app="a:b", trusted_proxies=["10.0.0.0/8"]),)))
    assert ProxyConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_proxy_has_its_slot_and_its_share() -> None:
    web = service(app="a:b", max_connections=5)
    config = Config(admin="", proxies=2, services=(web,))
    assert [proxy_plan(config, slot, [7], {}, ["x"]).name for slot in (0, 1)] == [
        "proxy/0",
        "proxy/1",
    ]
    shares = [told(config, proxy=slot).services[0].max_connections for slot in (0, 1)]
    assert shares == [3, 2]
