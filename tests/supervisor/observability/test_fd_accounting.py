"""Proves that a connection's descriptors are added up over all who have one, or left out."""

from collections.abc import Collection
from typing import Any

import pytest

from penstock_proxy import metrics
from penstock_supervisor.kernel.sock_diag import TcpEndpoint
from penstock_supervisor.observability.fd_accounting import per_connection, place
from penstock_supervisor.observability.traffic import Traffic


def counted(**answers: int) -> Any:
    """What the kernel says of ports; a KeyError is a question that nobody should ask."""

    def ask(places: Collection[TcpEndpoint]) -> dict[TcpEndpoint, int]:
        return {where: answers[f"p{where.port}"] for where in places}

    return ask


def silent_kernel(_: Collection[TcpEndpoint]) -> None:
    return None


def asked(made: Any, *children: Any, kernel: Any = None, **web: Any) -> dict[str, float]:
    facts = {"scheme": "ports", "mode": "http", "listen": "127.0.0.1:8000", "workers": (), **web}
    snapshot = made.snapshot(*children, services={"web": facts})
    return dict(per_connection(snapshot, Traffic(snapshot), kernel or counted()))


def proxy(made: Any, *, fds: int | None, active: int) -> Any:
    told = made.proxy_stats(web=[made.row(0), made.row(1)])
    series = told["metrics"]["services"]["web"]
    series["penstock_connections_active"] = {"": active}
    series.pop("penstock_connection_fds", None)
    if fds is not None:
        series["penstock_connection_fds"] = {"": fds}
    return made.proxy(stats=told)


def worker(made: Any, slot: int, client: object, *, active: int = 0, **more: Any) -> Any:
    series = {"penstock_connections_active": {"": active}}
    told = {"metrics": {"fds": {"client": client, "listener": 9}, "series": series}}
    return made.worker(slot, stats=told, **more)


def test_a_proxy_that_forwards_has_two_and_its_worker_one(made: Any) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, 6), worker(made, 1, 4)
    assert asked(made, *children) == {"web": 3.0}


def test_a_connection_that_was_passed_is_the_workers_alone(made: Any) -> None:
    children = proxy(made, fds=0, active=10), worker(made, 0, 6), worker(made, 1, 4)
    assert asked(made, *children, scheme="handoff") == {"web": 1.0}


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_without_a_proxy_the_workers_have_all(made: Any, scheme: str) -> None:
    children = worker(made, 0, 6, active=6), worker(made, 1, 4, active=4)
    assert asked(made, *children, scheme=scheme) == {"web": 1.0}


def test_a_program_that_says_nothing_is_counted_from_outside(made: Any) -> None:
    children = proxy(made, fds=20, active=10), made.worker(0), worker(made, 1, 4)
    assert asked(made, *children, kernel=counted(p8100=6)) == {"web": 3.0}


def test_programs_that_share_a_port_are_counted_together(made: Any) -> None:
    children = made.worker(0), worker(made, 1, 4, active=4)
    assert asked(made, *children, kernel=counted(p8000=10), scheme="shared") == {"web": 1.0}


@pytest.mark.parametrize("client", ["many", -1, None, [], True])
def test_nonsense_is_as_good_as_silence(made: Any, client: object) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, client)
    assert asked(made, *children, kernel=counted(p8100=10)) == {"web": 3.0}


def test_while_nobody_is_connected_there_is_no_figure(made: Any) -> None:
    assert asked(made, proxy(made, fds=4, active=0), worker(made, 0, 4)) == {}
    assert asked(made, worker(made, 0, 0, active=0), scheme="shared") == {}
    assert asked(made, made.worker(0), kernel=counted(p8000=0), scheme="shared") == {}


def test_what_is_not_known_is_not_guessed(made: Any) -> None:
    busy = proxy(made, fds=20, active=10)
    assert asked(made, busy, made.worker(0), kernel=silent_kernel) == {}
    assert asked(made, made.worker(0), kernel=silent_kernel, scheme="shared") == {}
    assert asked(made, busy, made.worker(0, address=""), scheme="handoff") == {}
    assert asked(made, proxy(made, fds=None, active=10), worker(made, 0, 10)) == {}
    assert asked(made, made.proxy(stats={}), worker(made, 0, 10)) == {}
    assert asked(made, made.worker(0), scheme="shared", listen="unix:/run/web.sock") == {}


def test_datagrams_have_no_connections(made: Any) -> None:
    assert asked(made, worker(made, 0, 1, active=1), scheme="shared", mode="udp") == {}


def test_a_worker_without_a_process_has_no_descriptors(made: Any) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, 10), worker(made, 1, 99, pid=None)
    assert asked(made, *children) == {"web": 3.0}


def test_upstreams_have_theirs_elsewhere(made: Any) -> None:
    assert asked(made, proxy(made, fds=20, active=10)) == {"web": 2.0}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", TcpEndpoint("127.0.0.1", 80)),
        ("0.0.0.0:80", TcpEndpoint("", 80)),
        ("[::]:80", TcpEndpoint("", 80)),
        ("[::1]:80", TcpEndpoint("::1", 80)),
        ("unix:/run/x", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_a_place_is_read_from_an_address(address: str, expected: TcpEndpoint | None) -> None:
    assert place(address) == expected


def test_the_proxy_has_a_name_for_its_own() -> None:
    known = {metric.name for metric in metrics.TABLE}
    assert {"penstock_connections_active", "penstock_connection_fds"} <= known
