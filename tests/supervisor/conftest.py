"""Hand-made snapshots: a service `web` of two workers and one proxy, and one of upstreams.

A fixture, so that each test makes what it needs of it.
"""

import json
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from penstock_proxy import metrics
from penstock_proxy.metrics import RemovedWorkers, ServiceCounters
from penstock_supervisor.snapshot import ChildView, Snapshot
from penstock_worker.telemetry.loop_lag import LagHistogram


@pytest.fixture(scope="session", autouse=True)
def the_time_of_day_is_utc() -> Iterator[None]:
    """Wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def made() -> SimpleNamespace:
    return SimpleNamespace(
        proxy=proxy, worker=worker, snapshot=snapshot, row=row, proxy_stats=proxy_stats
    )


def counters() -> ServiceCounters:
    counted = ServiceCounters()
    counted.connections = 5
    counted.active = 2
    worker_0 = RemovedWorkers(0)
    counted.worker_connections[worker_0] = 3
    counted.requests["GET", 200, worker_0] = 7
    counted.requests["GET", 503, None] = 1
    counted.durations[None].observe(0.003)
    counted.durations[None].observe(100.0)
    counted.sent = 1000
    counted.checks[0, "ok"] = 4
    return counted


def lag(seconds: float) -> list[float]:
    """A loop that has been late once."""
    histogram = LagHistogram()
    histogram.observe(seconds)
    return histogram.flat()


def row(slot: int, health: str = "up", **more: Any) -> dict[str, Any]:
    return {
        "member": slot, "slot": slot, "address": f"127.0.0.1:810{slot}", "weight": 1,
        "health": health, "active": 3, "failures": 0, "ejections": 2, "reason": "", **more,
    }  # fmt: skip


def proxy_stats(**pools: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer to STATS, converted through JSON as on the channel."""
    series = metrics.snapshot(
        {"web": counters()},
        fds={"listener": 1, "client": 2, "upstream": 3, "other": 9},
        loop_lag=lag(0.002),
        tasks=3,
        log_dropped={},
    )
    stats: dict[str, Any] = json.loads(
        json.dumps({"cmd": "stats", "seq": 1, "metrics": series, "pools": pools})
    )
    return stats


def proxy(**changes: Any) -> ChildView:
    return _child(
        {
            "role": "proxy", "service": "", "slot": 0, "address": "", "fresh": True,
            "stats": proxy_stats(web=[row(0), row(1, "down")], api=[row(0)]), **changes,
        }
    )  # fmt: skip


def worker(slot: int = 0, **changes: Any) -> ChildView:
    return _child(
        {
            "role": "worker", "service": "web", "slot": slot, "number": slot,
            "address": f"127.0.0.1:810{slot}", **changes,
        }
    )  # fmt: skip


def _child(values: dict[str, Any]) -> ChildView:
    # The pid of this process, because it certainly exists.
    defaults: dict[str, Any] = {
        "state": "ready", "pid": os.getpid(), "restarts": {}, "since_s": 1.5, "last_exit": "",
        "exits": {"1": 1},
    }  # fmt: skip
    return ChildView(**{**defaults, **values})


def snapshot(*children: ChildView, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "children": children or (proxy(), worker(0), worker(1)),
        "services": {
            "web": {
                "scheme": "ports", "mode": "http", "listen": "127.0.0.1:8000",
                "workers": ("127.0.0.1:8100", "127.0.0.1:8101"),
            },
            "api": {
                "scheme": "ports", "mode": "tcp", "listen": "127.0.0.1:8001",
                "upstreams": ("127.0.0.1:8100",),
            },
        },
        "uptime_s": 12.0, "ready": True, "stopping": False,
        "listener_fds": 3, "channel_fds": 3, "loop_lag": lag(0.001), "tasks": 4,
    }  # fmt: skip
    return Snapshot(**{**values, **changes})
