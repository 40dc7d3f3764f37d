"""/status has the supervisor's and the proxy's fields for each slot.

Covers `snapshot`.
"""

import json
from typing import Any

from penstock_supervisor.control.status import describe, services_without_worker
from penstock_supervisor.snapshot import SocketQueue, SocketView


def test_a_status_has_every_field_of_a_worker(made: Any) -> None:
    worker = made.worker(restarts={"signal": 1}, last_exit="SIGKILL", pid=4711)
    status = describe(made.snapshot(made.proxy(), worker), "1.2.3", 99, {})
    assert status["services"]["web"]["workers"] == [
        {
            "slot": 0, "address": "127.0.0.1:8100", "state": "up", "since": 1.5, "pid": 4711,
            "restarts": {"signal": 1}, "last_exit": "SIGKILL", "answers": False, "alive": True,
            "health": "up", "reason": "", "weight": 1, "active": 3, "failures": 0,
            "ejections": 2,
        }
    ]  # fmt: skip


def test_a_status_is_json_and_describes_the_run(made: Any) -> None:
    status = json.loads(json.dumps(describe(made.snapshot(), "1.2.3", 99, {})))
    assert (status["version"], status["pid"], status["uptime"]) == ("1.2.3", 99, 12.0)
    assert (status["ready"], status["stopping"]) == (True, False)
    assert [(one["state"], one["covered"]) for one in status["proxies"]] == [("up", False)]
    web = status["services"]["web"]
    assert (web["scheme"], web["mode"], web["listen"]) == ("ports", "http", "127.0.0.1:8000")
    assert [worker["health"] for worker in web["workers"]] == ["up", "down"]


def test_upstreams_are_workers_without_a_process(made: Any) -> None:
    (upstream,) = describe(made.snapshot(), "", 0, {})["services"]["api"]["workers"]
    assert (upstream["slot"], upstream["address"]) == (0, "127.0.0.1:8100")
    assert upstream["health"] == "up"
    assert "pid" not in upstream


def test_fields_that_no_proxy_has_reported_are_null(made: Any) -> None:
    status = describe(made.snapshot(made.proxy(stats={}), made.worker()), "", 0, {})
    (worker,) = status["services"]["web"]["workers"]
    assert worker["health"] is None
    (upstream,) = status["services"]["api"]["workers"]
    assert upstream["active"] is None


def test_a_service_without_a_worker_in_rotation_is_named(made: Any) -> None:
    pools = {"web": [made.row(0, "ejected"), made.row(1, "checking")], "api": [made.row(0)]}
    snapshot = made.snapshot(made.proxy(stats=made.proxy_stats(**pools)))
    assert services_without_worker(snapshot) == ("web",)
    assert services_without_worker(made.snapshot()) == ()
    assert services_without_worker(made.snapshot(made.worker())) == ("web", "api")


def test_a_status_has_the_split_of_requests_over_workers(made: Any) -> None:
    services = describe(made.snapshot(), "", 0, {})["services"]
    assert services["web"]["split"] == {
        "of": "requests", "by_slot": {"0": 7, "1": 0}, "jain_ratio": 0.5,
    }  # fmt: skip
    assert services["api"]["split"] == {"of": "connections", "by_slot": {}, "jain_ratio": None}


def test_a_status_lists_the_pids_of_each_role(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(pid=11), made.worker(0, pid=12), made.worker(1, pid=None))
    assert describe(snapshot, "", 10, {})["pids"] == {
        "supervisor": [10], "proxy": [11], "worker": [12],
    }  # fmt: skip


def test_a_status_has_the_queue_of_each_socket(made: Any) -> None:
    views = (SocketView("web", 0, 5, "", "tcp"), SocketView("web", 1, 6, "", "tcp"))
    snapshot = made.snapshot(sockets=views, dropped={"web": 3})
    services = describe(snapshot, "", 0, {5: SocketQueue(1, 511, 2)})["services"]
    assert services["web"]["dropped"] == 3
    assert services["web"]["sockets"] == [
        {"slot": 0, "kind": "tcp", "length": 1, "limit": 511, "overflows": 2},
        {"slot": 1, "kind": "tcp", "length": None, "limit": None, "overflows": None},
    ]
    assert services["api"]["sockets"] == []


def test_without_a_proxy_the_worker_checks_decide_which_workers_are_up(made: Any) -> None:
    pools = {"web": [made.row(0), made.row(1, "down")], "api": [made.row(0, "down")]}
    snapshot = made.snapshot(
        made.worker(0), made.worker(1), worker_checks={"metrics": {"services": {}}, "pools": pools}
    )
    workers = describe(snapshot, "", 0, {})["services"]["web"]["workers"]
    assert [worker["health"] for worker in workers] == ["up", "down"]
    assert services_without_worker(snapshot) == ("api",)
