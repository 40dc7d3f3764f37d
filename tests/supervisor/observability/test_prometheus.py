"""A metrics page has exactly the values of the snapshot, in both formats.

Covers `kernel/process_stats` and `observability/metric_families`.
"""

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from penstock_proxy import metrics
from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.process_stats import soft_fd_limit
from penstock_supervisor.observability import prometheus as collector
from penstock_supervisor.observability.prometheus import render
from penstock_supervisor.snapshot import ProcessView, Snapshot, SocketView, TlsView

Values = dict[tuple[str, ...], float]


def page(snapshot: Snapshot) -> str:
    body, kind = render(snapshot, "")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    return body.decode()


def samples(snapshot: Snapshot, name: str, *labels: str) -> Values:
    """By the values of `labels`; those are all that the sample has."""
    found: Values = {}
    for family in parse_text(page(snapshot)):
        for sample in family.samples:
            if sample.name == name:
                assert set(sample.labels) == set(labels), name
                found[tuple(sample.labels[label] for label in labels)] = sample.value
    return found


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


LAG = [*(0,) * 7, 0, 1, 0, 0, 0, 0.25]
"""A loop that has kept others waiting once, for a quarter of a second."""
PROCESS = ("role", "service", "slot")


@pytest.mark.parametrize(
    "name",
    [
        "penstock_process_open_fds", "penstock_process_max_fds", "penstock_process_threads",
        "penstock_process_resident_memory_bytes", "penstock_process_cpu_seconds_total",
    ],
)  # fmt: skip
def test_every_process_has_the_figures_of_the_kernel(made: Any, name: str) -> None:
    found = samples(made.snapshot(), name, *PROCESS)
    assert set(found) == {
        ("supervisor", "", ""), ("proxy", "", "0"), ("worker", "web", "0"), ("worker", "web", "1"),
    }  # fmt: skip
    assert all(value > 0 for value in found.values())


def test_descriptors_and_their_limit_are_the_processs_own(made: Any) -> None:
    code = """if True:
        import os, resource, time
        resource.setrlimit(resource.RLIMIT_NOFILE, (123, resource.getrlimit(7)[1]))
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
        print(flush=True)
        time.sleep(60)
    """
    with process(code) as child:
        snapshot = made.snapshot(made.worker(pid=child.pid))
        opened = samples(snapshot, "penstock_process_open_fds", *PROCESS)
        limit = samples(snapshot, "penstock_process_max_fds", *PROCESS)
        expected = len(os.listdir(f"/proc/{child.pid}/fd"))  # noqa: PTH208
    assert expected > 40
    assert opened["worker", "web", "0"] == expected
    assert limit["worker", "web", "0"] == 123


def test_no_limit_is_infinite() -> None:
    limits = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            unlimited            unlimited            files     \n"
    )
    assert soft_fd_limit(limits) == math.inf
    assert soft_fd_limit(limits.replace("unlimited", "1024     ")) == 1024


def test_a_process_that_has_ended_has_a_state_and_no_process_metrics(made: Any) -> None:
    with process("print(flush=True); import time; time.sleep(60)") as child:
        pass
    snapshot = made.snapshot(made.worker(pid=child.pid, state="ready"))
    assert set(samples(snapshot, "penstock_process_open_fds", *PROCESS)) == {("supervisor", "", "")}
    state = samples(snapshot, "penstock_child_state", *PROCESS, "state")
    assert state["worker", "web", "0", "ready"] == 1


def test_a_zombie_still_has_a_state_on_the_page(made: Any) -> None:
    with process("print(flush=True); import time; time.sleep(60)") as child:
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert "penstock_child_state" in page(made.snapshot(made.worker(pid=child.pid)))


def test_a_worker_without_a_process_has_a_state_and_no_figures(made: Any) -> None:
    snapshot = made.snapshot(made.worker(pid=None, state="crash_loop", crash_loop=True))
    state = samples(snapshot, "penstock_child_state", *PROCESS, "state")
    assert {key[3]: value for key, value in state.items() if value} == {"crash_loop": 1}
    assert samples(snapshot, "penstock_child_crash_loop", *PROCESS)["worker", "web", "0"] == 1
    assert len(state) > 1
    assert not samples(snapshot, "penstock_child_info", *PROCESS, "pid", "address")


def test_the_processes_of_a_slot_are_counted_by_state_and_measured_once(made: Any) -> None:
    processes = (
        ProcessView("current", "ready", os.getpid(), "", 1.0, None),
        ProcessView("draining", "draining", os.getppid(), "", 9.0, 3),
        ProcessView("draining", "draining", os.getppid(), "", 8.0, 3),
    )
    snapshot = made.snapshot(made.worker(processes=processes))
    state = samples(snapshot, "penstock_child_state", *PROCESS, "state")
    assert {key[3]: value for key, value in state.items() if value} == {"ready": 1, "draining": 2}
    memory = samples(snapshot, "penstock_process_resident_memory_bytes", *PROCESS)
    assert set(memory) == {("supervisor", "", ""), ("worker", "web", "0")}


def test_descriptors_by_kind_are_those_that_each_process_reports(made: Any) -> None:
    reported = {"metrics": {"fds": {"listener": 1, "client": 5}, "loop_lag": LAG, "tasks": 7}}
    snapshot = made.snapshot(made.proxy(), made.worker(stats=reported))
    found = samples(snapshot, "penstock_fds", *PROCESS, "kind")
    assert found["proxy", "", "0", "upstream"] == 3
    assert found["worker", "web", "0", "client"] == 5
    assert found["supervisor", "", "", "listener"] == 3
    assert found["supervisor", "", "", "other"] > 0
    lag = samples(snapshot, "penstock_event_loop_lag_seconds_sum", *PROCESS)
    assert lag == {
        ("supervisor", "", ""): 0.001, ("proxy", "", "0"): 0.002, ("worker", "web", "0"): 0.25,
    }  # fmt: skip
    buckets = samples(snapshot, "penstock_event_loop_lag_seconds_bucket", *PROCESS, "le")
    assert [buckets["worker", "web", "0", le] for le in ("0.1", "0.25", "0.5", "+Inf")] == [
        0, 1, 1, 1,
    ]  # fmt: skip
    tasks = samples(snapshot, "penstock_event_loop_tasks", *PROCESS)
    assert tasks == {
        ("supervisor", "", ""): 4, ("proxy", "", "0"): 3, ("worker", "web", "0"): 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    "stats",
    [
        {"metrics": None},
        {"metrics": []},
        {"metrics": {"fds": 7, "loop_lag": "late", "tasks": "many"}},
        {"metrics": {"fds": {"client": "x", "listener": None, "a": True}, "loop_lag": None}},
        {
            "metrics": {
                "fds": {"client": -1, "channel": math.nan},
                "loop_lag": [*LAG[:-1], math.inf],
            }
        },
        {"metrics": {"fds": {"client": 10**400}, "loop_lag": LAG[1:]}},
    ],
)
def test_invalid_reports_of_a_worker_are_left_out(made: Any, stats: dict[str, Any]) -> None:
    snapshot = made.snapshot(made.worker(stats=stats))
    assert all(key[0] != "worker" for key in samples(snapshot, "penstock_fds", *PROCESS, "kind"))
    lag = samples(snapshot, "penstock_event_loop_lag_seconds_sum", *PROCESS)
    assert set(lag) == {("supervisor", "", "")}
    assert len(samples(snapshot, "penstock_event_loop_tasks", *PROCESS)) == 1


def test_unknown_kinds_of_descriptors_share_one_label(made: Any) -> None:
    reported = {"metrics": {"fds": {"a\n": 1, "b": 2, "other": 4}}}
    found = samples(made.snapshot(made.worker(stats=reported)), "penstock_fds", *PROCESS, "kind")
    assert found["worker", "web", "0", "other"] == 7


def test_restarts_are_shown_for_every_reason_from_the_start(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(), made.worker(restarts={"signal": 2}))
    found = samples(snapshot, "penstock_child_restarts_total", *PROCESS, "reason")
    assert {key: value for key, value in found.items() if value} == {
        ("worker", "web", "0", "signal"): 2
    }
    assert {key[3] for key in found} == {
        "exit", "signal", "start_timeout", "spawn", "retire", "channel", "liveness", "unhealthy",
    }  # fmt: skip


def test_every_end_of_a_process_is_counted(made: Any) -> None:
    snapshot = made.snapshot(made.worker(exits={"0": 1, "SIGKILL": 2}))
    found = samples(snapshot, "penstock_child_exits_total", *PROCESS, "status")
    assert found == {
        ("worker", "web", "0", "0"): 1,
        ("worker", "web", "0", "SIGKILL"): 2,
    }


def test_the_rotation_is_the_one_that_the_proxy_reports(made: Any) -> None:
    snapshot = made.snapshot()
    rotation = samples(snapshot, "penstock_worker_in_rotation", "service", "slot")
    assert rotation == {("web", "0"): 1, ("web", "1"): 0, ("api", "0"): 1}
    health = samples(snapshot, "penstock_worker_health", "service", "slot", "state")
    assert {key for key, value in health.items() if value} == {
        ("web", "0", "up"), ("web", "1", "down"), ("api", "0", "up"),
    }  # fmt: skip
    assert samples(snapshot, "penstock_worker_in_flight", "service", "slot")["web", "0"] == 3
    assert samples(snapshot, "penstock_ejections_total", "service", "slot")["web", "0"] == 2


def test_upstreams_are_shown_with_their_addresses(made: Any) -> None:
    found = samples(made.snapshot(), "penstock_child_info", *PROCESS, "pid", "address")
    assert ("worker", "api", "0", "", "127.0.0.1:8100") in found
    assert ("worker", "web", "0", str(os.getpid()), "127.0.0.1:8100") in found
    assert sum(key[1] == "web" for key in found) == 2


def test_traffic_is_shown_as_the_proxy_counted_it(made: Any) -> None:
    snapshot = made.snapshot()
    requests = samples(snapshot, "penstock_requests_total", "service", "slot", "method", "code")
    assert requests == {("web", "0", "GET", "200"): 7, ("web", "", "GET", "503"): 1}
    assert samples(snapshot, "penstock_connections_total", "service") == {("web",): 5}
    assert samples(snapshot, "penstock_bytes_total", "service", "direction") == {
        ("web", "sent"): 1000, ("web", "received"): 0,
    }  # fmt: skip
    checks = samples(snapshot, "penstock_health_checks_total", "service", "slot", "result")
    assert checks == {("web", "0", "ok"): 4}


def test_a_histogram_is_cumulative_and_complete(made: Any) -> None:
    buckets = samples(
        made.snapshot(),
        "penstock_request_duration_seconds_bucket", "service", "phase", "le",
    )  # fmt: skip
    total = {float(key[2]): value for key, value in buckets.items() if key[1] == "total"}
    assert list(total) == [*metrics.BUCKETS_S, math.inf]
    assert (total[0.0025], total[0.005], total[60.0], total[math.inf]) == (0, 1, 1, 2)
    name = "penstock_request_duration_seconds"
    assert samples(made.snapshot(), f"{name}_count", "service", "phase")["web", "total"] == 2
    summed = samples(made.snapshot(), f"{name}_sum", "service", "phase")
    assert summed["web", "total"] == pytest.approx(100.003)


def test_what_several_proxies_counted_is_one_sum(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(slot=0), made.proxy(slot=1))
    assert samples(snapshot, "penstock_connections_total", "service") == {("web",): 10}
    assert samples(snapshot, "penstock_worker_in_flight", "service", "slot")["web", "0"] == 6
    assert samples(snapshot, "penstock_ejections_total", "service", "slot")["web", "0"] == 4


def test_a_proxy_that_never_answered_leaves_traffic_out(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(stats={}))
    assert not samples(snapshot, "penstock_connections_total", "service")
    assert not samples(snapshot, "penstock_worker_in_rotation", "service", "slot")


def test_the_page_has_the_standard_metrics_of_the_supervisor(made: Any) -> None:
    snapshot = made.snapshot()
    for name in ("process_open_fds", "process_max_fds", "process_start_time_seconds"):
        assert samples(snapshot, name)[()] > 0
    assert "python_info{" in page(snapshot)
    (build,) = samples(snapshot, "penstock_build_info", "version", "python")
    assert build[0]


def test_a_client_that_accepts_openmetrics_gets_it(made: Any) -> None:
    prometheus = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    )
    for accept in (
        prometheus,
        "application/openmetrics-text; version=x",
        "*/*, Application/OpenMetrics-text",
    ):
        body, kind = render(made.snapshot(), accept)
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith(b"# EOF\n")
    names = {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert {"penstock_requests", "penstock_child", "penstock_fds"} <= names


@pytest.fixture
def full(made: Any) -> Iterator[Snapshot]:
    """Everything that can be observed: a service behind a proxy, and one without."""
    reported = {
        "metrics": {
            "fds": {"client": 2},
            "series": {
                "penstock_connections_active": {"": 2},
                "penstock_worker_connections_total": {"0": 5},
                "penstock_worker_uncaught_exceptions_total": {"0": 7},
            },
        }
    }
    with socket.create_server(("127.0.0.1", 0), backlog=9) as listening:
        view = SocketView("direct", 0, os.fstat(listening.fileno()).st_ino, "", "tcp")
        base = made.snapshot()
        services = {
            **base.services,
            "direct": {"scheme": "reuseport", "mode": "http", "listen": "127.0.0.1:1"},
        }
        yield made.snapshot(
            *base.children,
            made.worker(0, service="direct", stats=reported, events={"fork": 2, "exit": 1}),
            services=services,
            sockets=(view,),
            dropped={"direct": 4},
            tls={"web": TlsView({"a.example": 5.0}, {"ok": 2, "failed": 1}, current=False)},
            worker_checks={"pools": {"direct": [made.row(0, active=0)]}},
        )


def test_every_row_of_both_tables_is_on_the_page(full: Snapshot) -> None:
    text = page(full)
    for metric in (*collector.TABLE, *metrics.TABLE):
        assert f"# HELP {metric.name} {metric.help}" in text
        assert any(line.startswith(metric.name) for line in text.splitlines()), metric.name


def test_a_listening_socket_is_shown_with_its_queue(full: Snapshot) -> None:
    def of(name: str) -> Values:
        return samples(full, f"penstock_accept_queue_{name}", "service", "slot")

    assert of("length") == {("direct", "0"): 0}
    assert of("limit") == {("direct", "0"): 9}
    assert of("overflows_total") == {("direct", "0"): 0}
    dropped = samples(full, "penstock_accept_queue_dropped_total", "service")
    assert dropped == {("direct",): 4}


def test_certificates_are_shown_with_their_expiry_and_their_reloads(full: Snapshot) -> None:
    good = samples(full, "penstock_tls_certificate_not_after_timestamp_seconds", "service", "name")
    assert good == {("web", "a.example"): 5}
    reloads = samples(full, "penstock_tls_reloads_total", "service", "result")
    assert reloads == {("web", "ok"): 2, ("web", "failed"): 1}
    assert samples(full, "penstock_tls_last_reload_successful", "service") == {("web",): 0}


def test_a_shared_socket_has_no_slot_and_a_closed_one_no_metrics(made: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        inode = os.fstat(listening.fileno()).st_ino
        views = (SocketView("web", None, inode, "", "tcp"), SocketView("api", None, 0, "", "tcp"))
        snapshot = made.snapshot(sockets=views)
        found = samples(snapshot, "penstock_accept_queue_length", "service", "slot")
    assert found == {("web", ""): 0}


def test_local_ports_are_those_of_the_connections_to_workers(made: Any) -> None:
    # An address of its own: at 127.0.0.1 the port may still have a TIME_WAIT of another test.
    with socket.create_server(("127.77.77.77", 0)) as listening:
        host, port = listening.getsockname()
        rows = [made.row(0, address=f"{host}:{port}"), made.row(1, address="unix:/run/x")]
        snapshot = made.snapshot(made.proxy(stats=made.proxy_stats(web=rows)))
        with socket.create_connection((host, port)), socket.create_connection((host, port)):
            found = samples(snapshot, "penstock_ephemeral_ports", "service")
    assert found == {("web",): 2}


def test_without_netlink_only_its_metrics_are_missing(
    monkeypatch: pytest.MonkeyPatch, full: Snapshot
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no netlink here")

    monkeypatch.setattr(sock_diag, "_dump", refused)
    assert not samples(full, "penstock_ephemeral_ports", "service")
    assert not samples(full, "penstock_accept_queue_length", "service", "slot")
    assert samples(full, "penstock_worker_in_flight", "service", "slot")["direct", "0"] == 2


def test_the_counts_of_workers_are_on_the_page_without_a_proxy(full: Snapshot) -> None:
    found = samples(full, "penstock_worker_connections_total", "service", "slot")
    assert found["direct", "0"] == 5
    assert samples(full, "penstock_fds_per_connection", "service")["direct",] == 1
    fairness = samples(full, "penstock_jain_fairness_index", "service")
    assert fairness == {("web",): 0.5, ("direct",): 1}


def test_events_are_counted_by_name(full: Snapshot) -> None:
    assert samples(full, "penstock_child_events_total", *PROCESS, "event") == {
        ("worker", "direct", "0", "fork"): 2, ("worker", "direct", "0", "exit"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "series",
    [
        [],
        {"penstock_requests_total": {'0 GET 200"} 1\n': 1, "9 GET 200": 2, "0 \n 200": math.nan}},
        {"penstock_request_duration_seconds": {"total": [1, 2], "\n": [0] * 18}},
        {"penstock_handoffs_total": {"lost": 1e9}, "penstock_up\n": {"": 1}},
        {"penstock_connections_active": {"": "x"}, "penstock_connections_total": {"": -1}},
    ],
)
def test_any_report_of_a_worker_leaves_a_valid_page(made: Any, series: object) -> None:
    services = {"web": {"scheme": "shared", "mode": "http", "listen": "127.0.0.1:1"}}
    hostile = made.worker(0, stats={"metrics": {"series": series}}, carryover=series)
    snapshot = made.snapshot(hostile, services=services)
    found = samples(snapshot, "penstock_requests_total", "service", "slot", "method", "code")
    # The slot is always the worker's own, and both sources have at most one sample.
    assert set(found) <= {("web", "0", "GET", "200")}
    assert not samples(snapshot, "penstock_handoffs_total", "service", "result")


def test_no_metric_is_named_twice() -> None:
    names = [metric.name for metric in (*collector.TABLE, *metrics.TABLE)]
    assert len(names) == len(set(names))


@pytest.mark.needs("promtool")
def test_promtool_finds_no_fault(full: Snapshot) -> None:
    result = subprocess.run(
        ["promtool", "check", "metrics"],
        input=page(full), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
