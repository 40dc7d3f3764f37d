"""A connection's descriptors are summed over all processes; without all parts there is no sum."""

from collections.abc import Collection
from typing import Any

import pytest

from penstock_proxy import metrics
from penstock_supervisor.kernel.sock_diag import TcpEndpoint
from penstock_supervisor.observability.fd_accounting import per_connection, place
from penstock_supervisor.observability.traffic import Traffic


def counted(**answers: int) -> Any:
    """The kernel's answer by port. KeyError: the port should not be asked about."""

    def count(endpoints: Collection[TcpEndpoint]) -> dict[TcpEndpoint, int]:
        return {where: answers[f"p{where.port}"] for where in endpoints}

    return count


def silent_kernel(_: Collection[TcpEndpoint]) -> None:
    return None


def fds_per_connection(
    made: Any, *children: Any, kernel: Any = None, **web: Any
) -> dict[str, float]:
    facts = {"scheme": "ports", "mode": "http", "listen": "127.0.0.1:8000", "workers": (), **web}
    snapshot = made.snapshot(*children, services={"web": facts})
    return dict(per_connection(snapshot, Traffic(snapshot), kernel or counted()))


def proxy(made: Any, *, fds: int | None, active: int) -> Any:
    reported = made.proxy_stats(web=[made.row(0), made.row(1)])
    series = reported["metrics"]["services"]["web"]
    series["penstock_connections_active"] = {"": active}
    series.pop("penstock_connection_fds", None)
    if fds is not None:
        series["penstock_connection_fds"] = {"": fds}
    return made.proxy(stats=reported)


def worker(made: Any, slot: int, client: object, *, active: int = 0, **more: Any) -> Any:
    series = {"penstock_connections_active": {"": active}}
    reported = {"metrics": {"fds": {"client": client, "listener": 9}, "series": series}}
    return made.worker(slot, stats=reported, **more)


def test_a_proxy_that_forwards_has_two_descriptors_and_its_worker_one(made: Any) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, 6), worker(made, 1, 4)
    assert fds_per_connection(made, *children) == {"web": 3.0}


def test_a_connection_that_was_handed_over_is_open_in_the_worker_only(made: Any) -> None:
    children = proxy(made, fds=0, active=10), worker(made, 0, 6), worker(made, 1, 4)
    assert fds_per_connection(made, *children, scheme="handoff") == {"web": 1.0}


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_without_a_proxy_only_the_workers_have_descriptors(made: Any, scheme: str) -> None:
    children = worker(made, 0, 6, active=6), worker(made, 1, 4, active=4)
    assert fds_per_connection(made, *children, scheme=scheme) == {"web": 1.0}


def test_the_connections_of_a_program_without_reports_come_from_the_kernel(made: Any) -> None:
    children = proxy(made, fds=20, active=10), made.worker(0), worker(made, 1, 4)
    assert fds_per_connection(made, *children, kernel=counted(p8100=6)) == {"web": 3.0}


def test_programs_that_share_a_port_are_counted_together(made: Any) -> None:
    children = made.worker(0), worker(made, 1, 4, active=4)
    assert fds_per_connection(made, *children, kernel=counted(p8000=10), scheme="shared") == {
        "web": 1.0
    }


@pytest.mark.parametrize("client", ["many", -1, None, [], True])
def test_an_invalid_report_counts_as_none(made: Any, client: object) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, client)
    assert fds_per_connection(made, *children, kernel=counted(p8100=10)) == {"web": 3.0}


def test_without_clients_there_is_no_number(made: Any) -> None:
    assert fds_per_connection(made, proxy(made, fds=4, active=0), worker(made, 0, 4)) == {}
    assert fds_per_connection(made, worker(made, 0, 0, active=0), scheme="shared") == {}
    assert fds_per_connection(made, made.worker(0), kernel=counted(p8000=0), scheme="shared") == {}


def test_an_unknown_part_leaves_no_number(made: Any) -> None:
    busy = proxy(made, fds=20, active=10)
    assert fds_per_connection(made, busy, made.worker(0), kernel=silent_kernel) == {}
    assert fds_per_connection(made, made.worker(0), kernel=silent_kernel, scheme="shared") == {}
    assert fds_per_connection(made, busy, made.worker(0, address=""), scheme="handoff") == {}
    assert fds_per_connection(made, proxy(made, fds=None, active=10), worker(made, 0, 10)) == {}
    assert fds_per_connection(made, made.proxy(stats={}), worker(made, 0, 10)) == {}
    assert (
        fds_per_connection(made, made.worker(0), scheme="shared", listen="unix:/run/web.sock") == {}
    )


def test_datagrams_have_no_connections(made: Any) -> None:
    assert fds_per_connection(made, worker(made, 0, 1, active=1), scheme="shared", mode="udp") == {}


def test_a_worker_without_a_process_has_no_descriptors(made: Any) -> None:
    children = proxy(made, fds=20, active=10), worker(made, 0, 10), worker(made, 1, 99, pid=None)
    assert fds_per_connection(made, *children) == {"web": 3.0}


def test_upstreams_have_no_descriptors_on_this_machine(made: Any) -> None:
    assert fds_per_connection(made, proxy(made, fds=20, active=10)) == {"web": 2.0}


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
def test_an_endpoint_is_parsed_from_an_address(address: str, expected: TcpEndpoint | None) -> None:
    assert place(address) == expected


def test_the_metrics_in_use_are_defined_by_the_proxy() -> None:
    known = {metric.name for metric in metrics.TABLE}
    assert {"penstock_connections_active", "penstock_connection_fds"} <= known
