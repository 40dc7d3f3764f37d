"""A service becomes exactly the children it asks for, and a front that knows where they are."""

from collections.abc import Sequence
from typing import Any

from penstock_proxy.config import Address, FrontConfig
from penstock_supervisor.schemes import ChildPlan, front_config, front_plan, worker_plans
from penstock_supervisor.services import Config, Service

PLACES = (Address("127.0.0.1", 8101), Address("127.0.0.1", 8102))


def service(**keys: Any) -> Service:
    return Service.model_validate({"name": "web", "listen": "127.0.0.1:8000", **keys})


def plans(made: Service, **environment: str) -> tuple[ChildPlan, ...]:
    return worker_plans(made, PLACES, environment, "/python")


def test_an_app_runs_in_our_runtime_with_a_channel() -> None:
    first, second = plans(service(app="shop.web:app"))
    assert first.argv == ("/python", "-m", "penstock_worker.serve", "shop.web:app")
    assert first.channel
    assert (first.name, second.name) == ("web/0", "web/1")
    assert (first.address, second.address) == PLACES
    assert first.origin == "service.web"


def test_a_command_gets_its_port_wherever_it_asks_for_it() -> None:
    first, second = plans(service(command=["node", "server.js", "--listen=:{port}", "{port}"]))
    assert first.argv == ("node", "server.js", "--listen=:8101", "8101")
    assert second.argv[-1] == "8102"
    assert not first.channel


def test_a_worker_is_told_who_and_where_it_is() -> None:
    _, second = plans(service(command=["x"], env={"COLOUR": "blue"}), PATH="/bin", COLOUR="red")
    assert dict(second.environment) == {
        "PATH": "/bin",
        "COLOUR": "blue",
        "PORT": "8102",
        "HOST": "127.0.0.1",
        "PENSTOCK_SERVICE": "web",
        "PENSTOCK_SLOT": "1",
        "NODE_APP_INSTANCE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def test_who_wants_buffered_output_keeps_it() -> None:
    first, _ = plans(service(command=["x"]), PYTHONUNBUFFERED="")
    assert first.environment["PYTHONUNBUFFERED"] == ""


def test_a_service_of_upstreams_starts_nothing() -> None:
    assert worker_plans(service(upstreams=["127.0.0.1:9001"]), (), {}, "/python") == ()


def test_a_front_may_finish_what_its_most_patient_service_allows() -> None:
    config = Config(
        admin="",
        services=(
            service(app="a:b", timeouts={"stop": "5s", "start": "1s"}),
            service(name="api", app="a:b", timeouts={"stop": "60s"}),
        ),
    )
    plan = front_plan(config, [7, 8], {"A": "b"}, ["front"])
    assert (plan.start_s, plan.stop_s) == (30, 60)
    assert (plan.name, plan.origin, plan.inherited) == ("front/0", "", (7, 8))


def told(
    config: Config,
    *joined: int,
    up: tuple[int, ...] = (),
    places: Sequence[Address] = PLACES,
) -> FrontConfig:
    return front_config(
        config,
        {"web": (7,)},
        {"web": places},
        joined=lambda _, slot: slot in joined,
        up=lambda _, slot: slot in up,
    )


def test_a_front_is_told_every_slot_and_who_is_there() -> None:
    web = service(app="a:b", weights=[3, 1], balance="hash", limits={"head": "8KiB"})
    (front,) = told(Config(admin="", services=(web,)), 1, up=(1,)).services
    assert [(t.slot, t.address, t.weight, t.joined, t.up) for t in front.targets] == [
        (0, "127.0.0.1:8101", 3, False, False),
        (1, "127.0.0.1:8102", 1, True, True),
    ]
    assert (front.name, front.listeners, front.balance) == ("web", (7,), "hash")
    assert (front.limits, front.timeouts) == (web.limits, web.timeouts)


def test_upstreams_are_always_joined() -> None:
    web = service(upstreams=["localhost:9001", "unix:/run/x.sock weight=3"])
    places = (Address("127.0.0.1", 9001), Address(path="/run/x.sock"))
    (front,) = told(Config(admin="", services=(web,)), up=(1,), places=places).services
    assert [(t.address, t.weight, t.joined, t.up) for t in front.targets] == [
        ("127.0.0.1:9001", 1, True, False),
        ("unix:/run/x.sock", 3, True, True),
    ]


def test_what_a_front_is_told_survives_the_channel() -> None:
    config = told(Config(admin="", services=(service(app="a:b", trusted_proxies=["10.0.0.0/8"]),)))
    assert FrontConfig.model_validate(config.model_dump(mode="json")) == config
