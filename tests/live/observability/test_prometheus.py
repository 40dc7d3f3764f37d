"""A real Prometheus, with the files that we ship, shows the true state of a real cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from penstock_proxy import metrics
from penstock_supervisor.observability import prometheus as collector

CONFIGS = Path(__file__).parents[3] / "configs"
DEADLINE_S = 60.0
T = TypeVar("T")


def eventually(ask: Callable[[], T], what: str) -> T:
    """Ask until the answer is true; a refused connection is an answer that is not."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        answer = None
        with suppress(OSError):
            answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited in vain for {what}; last seen: {answer!r}"
        time.sleep(0.05)


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a group of its own, of which nothing is left at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write(log.read_text(errors="replace")[-10_000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


class Cluster:
    """`penstock run` of the demo application: two workers, any ports."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        banner = re.compile(r"web on http://(\S+?),.*admin on http://(\S+?)/", re.DOTALL)
        ((self.address, self.admin),) = eventually(
            lambda: banner.findall(log.read_text()), "the banner"
        )

        eventually(
            lambda: {worker["health"] for worker in self.workers()} == {"up"},
            "both workers to be in rotation",
        )

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.status()["services"]["web"]["workers"]
        return workers

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(get(f"http://{self.admin}/status"))
        return status


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    log = tmp_path / "penstock.log"
    words = [sys.executable, "-m", "penstock_supervisor", "run"]
    options = ["-w", "2", "-b", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    with running([*words, *options], log) as process:
        yield Cluster(process, log)
    assert process.returncode == 0


class Prometheus:
    """The real one, with our own files, but a scrape a second."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._server = psutil.Process(process.pid)
        self._port = eventually(self._listening, "Prometheus to listen")

    def _listening(self) -> int:
        found = [
            connection.laddr.port
            for connection in self._server.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        return found[0] if found else 0

    def api(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        answer = json.loads(get(url))
        assert answer["status"] == "success"
        return answer["data"]

    def values(self, query: str, *labels: str) -> dict[tuple[str, ...], float]:
        result = self.api("query", query=query)["result"]
        return {
            tuple(one["metric"].get(label, "") for label in labels): float(one["value"][1])
            for one in result
        }

    def shows(self, query: str, labels: tuple[str, ...], expected: dict[Any, float]) -> None:
        seen: dict[tuple[str, ...], float] = {}

        def same() -> bool:
            nonlocal seen
            seen = self.values(query, *labels)
            return seen == expected

        try:
            eventually(same, query)
        finally:
            # Says how they differ, if they do.
            assert seen == expected


@pytest.fixture
def prometheus(cluster: Cluster, tmp_path: Path) -> Iterator[Prometheus]:
    text = (CONFIGS / "prometheus.yml").read_text()
    assert "127.0.0.1:9464" in text
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("127.0.0.1:9464", cluster.admin).replace("15s", "1s"))
    rules = CONFIGS / "prometheus-alerts.yml"
    (tmp_path / rules.name).write_text(rules.read_text())
    words = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    with running(words, tmp_path / "prometheus.log") as process:
        yield Prometheus(process)


PROCESS = ("role", "service", "slot")
EVERYBODY = {
    ("supervisor", "", ""), ("proxy", "", "0"), ("worker", "web", "0"), ("worker", "web", "1"),
}  # fmt: skip


@pytest.mark.needs("prometheus")
def test_prometheus_shows_the_cluster_and_its_traffic(
    cluster: Cluster, prometheus: Prometheus
) -> None:
    for _ in range(10):
        assert "hello from web/" in get(f"http://{cluster.address}/")
    for name in ("open_fds", "max_fds", "resident_memory_bytes", "cpu_seconds_total", "threads"):
        query = f"penstock_process_{name}"
        found = eventually(partial(prometheus.values, query, *PROCESS), query)
        assert set(found) == EVERYBODY
        assert all(value > 0 for value in found.values())
    kinds = {(role, kind) for role, kind in prometheus.values("penstock_fds", "role", "kind")}
    assert {
        ("supervisor", "listener"), ("proxy", "listener"), ("proxy", "client"),
        ("proxy", "upstream"), ("worker", "listener"),
    } <= kinds  # fmt: skip
    assert set(prometheus.values("penstock_event_loop_lag_seconds_count", *PROCESS)) == EVERYBODY
    prometheus.shows(
        'penstock_requests_total{method="GET",code="200"}', ("service", "slot"),
        {("web", "0"): 5, ("web", "1"): 5},
    )  # fmt: skip
    prometheus.shows(
        "penstock_request_duration_seconds_count", ("phase",),
        {("connect",): 2, ("first_byte",): 10, ("total",): 10},
    )  # fmt: skip
    prometheus.shows(
        "penstock_worker_in_rotation", ("service", "slot"), {("web", "0"): 1, ("web", "1"): 1}
    )
    prometheus.shows('up{job="penstock"}', (), {(): 1})


@pytest.mark.needs("prometheus")
def test_prometheus_shows_that_a_worker_was_killed_and_came_back(
    cluster: Cluster, prometheus: Prometheus
) -> None:
    restarts = 'penstock_child_restarts_total{role="worker",reason="signal"}'
    prometheus.shows(restarts, ("slot",), {("0",): 0, ("1",): 0})
    first = cluster.workers()[0]
    os.kill(first["pid"], signal.SIGKILL)
    prometheus.shows(restarts, ("slot",), {("0",): 1, ("1",): 0})
    prometheus.shows("penstock_worker_in_rotation", ("slot",), {("0",): 1, ("1",): 1})
    again = cluster.workers()[0]
    assert again["pid"] != first["pid"]
    assert (again["address"], again["last_exit"]) == (first["address"], "SIGKILL")


@pytest.mark.needs("prometheus")
def test_every_alert_can_be_evaluated_and_a_healthy_cluster_fires_none(
    cluster: Cluster, prometheus: Prometheus
) -> None:
    get(f"http://{cluster.address}/")

    def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] == "ok" for rule in rules) else []

    eventually(lambda: prometheus.values("penstock_process_open_fds", *PROCESS), "a scrape")
    rules = eventually(evaluated, "every rule to be evaluated")
    assert {rule["name"]: rule["state"] for rule in rules if rule["state"] == "firing"} == {}


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_metrics_page_of_a_busy_cluster(cluster: Cluster) -> None:
    get(f"http://{cluster.address}/")
    page = get(f"http://{cluster.admin}/metrics")
    assert 'penstock_requests_total{code="200"' in page
    judged = promtool("check", "metrics", text=page)
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


def promtool(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_files_that_we_ship() -> None:
    judged = promtool("check", "config", str(CONFIGS / "prometheus.yml"))
    assert judged.returncode == 0, judged.stderr
    assert "rules found" in judged.stdout


def test_alerts_use_only_metrics_that_exist() -> None:
    known = {metric.name for metric in (*collector.TABLE, *metrics.TABLE)}
    asked = re.findall(r"\bpenstock_\w+", (CONFIGS / "prometheus-alerts.yml").read_text())
    assert {re.sub("_(bucket|count)$", "", name) for name in asked} <= known


FIRING = [
    ("PenstockGone", {'up{job="penstock"}': "0x20"}),
    ("PenstockNoWorkerInRotation", {'penstock_worker_in_rotation{service="web",slot="0"}': "0x20"}),
    ("PenstockCrashLoop", {"penstock_child_crash_loop": "1x20"}),
    ("PenstockWorkerHangs", {"penstock_worker_alive": "0x20"}),
    ("PenstockWorkersReplaced",
     {'penstock_child_restarts_total{reason="liveness"}': "0x9 1x20"}),
    ("PenstockRestarts", {'penstock_child_restarts_total{reason="exit"}': "0+1x20"}),
    ("PenstockUncaughtExceptions", {"penstock_worker_uncaught_exceptions_total": "0+60x20"}),
    ("PenstockDescriptorsNearLimit",
     {"penstock_process_open_fds": "90x20", "penstock_process_max_fds": "100x20"}),
    ("PenstockRejects", {'penstock_rejected_total{reason="no_worker"}': "0+5x20"}),
    ("PenstockServerErrors",
     {'penstock_requests_total{code="200"}': "0+90x20",
      'penstock_requests_total{code="502"}': "0+10x20"}),
    ("PenstockSlow",
     {'penstock_request_duration_seconds_bucket{phase="first_byte",le="5"}': "0+1x20",
      'penstock_request_duration_seconds_bucket{phase="first_byte",le="10"}': "0+9x20",
      'penstock_request_duration_seconds_bucket{phase="first_byte",le="+Inf"}': "0+9x20"}),
    ("PenstockProxyStalls",
     {'penstock_event_loop_lag_seconds_bucket{role="proxy",le="0.025"}': "0+90x20",
      'penstock_event_loop_lag_seconds_bucket{role="proxy",le="+Inf"}': "0+120x20",
      'penstock_event_loop_lag_seconds_count{role="proxy"}': "0+120x20"}),
    ("PenstockWorkerLoopBlocked",
     {'penstock_event_loop_lag_seconds_bucket{role="worker",le="0.5"}': "0+90x20",
      'penstock_event_loop_lag_seconds_bucket{role="worker",le="1"}': "0+120x20",
      'penstock_event_loop_lag_seconds_bucket{role="worker",le="+Inf"}': "0+120x20",
      'penstock_event_loop_lag_seconds_count{role="worker"}': "0+120x20"}),
    ("PenstockAccessLogDropped", {"penstock_access_log_lines_dropped_total": "0+1x20"}),
    ("PenstockLogLinesLost", {"penstock_log_lines_lost_total": "0x9 1x20"}),
    ("PenstockAcceptQueueFull", {'penstock_accept_queue_overflows_total{slot=""}': "0+1x20"}),
    ("PenstockAcceptQueueDropped", {"penstock_accept_queue_dropped_total": "0x9 1x20"}),
    ("PenstockHandoffsLost", {'penstock_handoffs_total{result="lost"}': "0x9 1x20"}),
    ("PenstockFewLocalPorts",
     {"penstock_ephemeral_ports": "50000x20",
      'penstock_worker_in_rotation{slot="0"}': "1x20",
      'penstock_worker_in_rotation{slot="1"}': "1x20"}),
    ("PenstockCertificateExpires",
     {'penstock_tls_certificate_not_after_timestamp_seconds{name="a.example"}': "1000000x20"}),
    ("PenstockCertificateNotUsable", {"penstock_tls_last_reload_successful": "0x20"}),
    ("PenstockNameNotFound",
     {'penstock_dns_lookups_total{service="web",name="dns:a:1",result="timeout"}': "0+2x20",
      'penstock_dns_lookups_total{service="web",name="dns:b:1",result="failed"}': "0+2x20",
      'penstock_dns_lookups_total{service="web",name="dns:b:1",result="found"}': "0+2x20"}),
    ("PenstockUnfairSplit",
     {'penstock_requests_total{slot="0",code="200"}': "0+6000x20",
      'penstock_requests_total{slot="1",code="200"}': "0+60x20",
      'penstock_requests_total{slot="2",code="200"}': "0+60x20",
      'penstock_worker_in_rotation{slot="0"}': "1x20",
      'penstock_worker_in_rotation{slot="1"}': "1x20",
      'penstock_worker_in_rotation{slot="2"}': "1x20"}),
    ("PenstockPanic", {"penstock_panic_mode": "1x20"}),
    ("PenstockRolloutAborted", {'penstock_rollouts_total{result="aborted"}': "0x10 1x10"}),
    ("PenstockConfigReloadFailed", {"penstock_config_last_reload_successful": "0x20"}),
    ("PenstockRetriesDenied", {"penstock_retries_denied_total": "0+5x20"}),
    ("PenstockRetriesExhausted", {"penstock_retries_exhausted_total": "0+5x20"}),
]  # fmt: skip


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(("alert", "series"), FIRING, ids=[alert for alert, _ in FIRING])
def test_each_alert_fires_when_it_should_and_no_other_does(
    tmp_path: Path, alert: str, series: dict[str, str]
) -> None:
    condition = f"count(ALERTS{{alertstate='firing',alertname='{alert}'}}) > bool 0"
    every = "count(ALERTS{alertstate='firing'}) by (alertname) > bool 0"
    case = {
        "rule_files": [str(CONFIGS / "prometheus-alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": one, "values": at} for one, at in series.items()],
                "promql_expr_test": [
                    {"expr": condition, "eval_time": "18m",
                     "exp_samples": [{"labels": "{}", "value": 1}]},
                    {"expr": every, "eval_time": "18m",
                     "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}]},
                ],
            }
        ],
    }  # fmt: skip
    path = tmp_path / "case.yml"
    # JSON is YAML.
    path.write_text(json.dumps(case))
    judged = promtool("test", "rules", str(path))
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_every_alert_is_proved_to_fire() -> None:
    alerts = re.findall(r"- alert: (\w+)", (CONFIGS / "prometheus-alerts.yml").read_text())
    assert sorted(alerts) == sorted(alert for alert, _ in FIRING)
