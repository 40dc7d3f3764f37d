"""/status has the supervisor's and the proxy's fields for each slot.

Covers `snapshot`.
"""

import json
from typing import Any

import pytest
from tests.support.supervisor.fake_run import rollout, step

from penstock_supervisor.control.status import describe
from penstock_supervisor.snapshot import ProcessUsage, ProcessView, SocketQueue, SocketView


def test_a_status_has_every_field_of_a_worker(made: Any) -> None:
    worker = made.worker(restarts={"signal": 1}, last_exit="SIGKILL", pid=4711)
    status = describe(made.snapshot(made.proxy(), worker), "1.2.3", 99, {})
    assert status["services"]["web"]["workers"] == [
        {
            "slot": 0, "address": "127.0.0.1:8100", "link": "tcp", "socket": None,
            "state": "ready", "since": 1.5, "pid": 4711,
            "restarts": {"signal": 1}, "last_exit": "SIGKILL", "last_exit_reason": None,
            "crash_loop": False, "next_start": None, "answers": False, "processes": [],
            "alive": True, "ports": [],
            "health": "up", "reason": "", "weight": 1, "active": 3, "failures": 0,
            "ejections": 2,
        }
    ]  # fmt: skip


def test_a_status_is_json_and_describes_the_run(made: Any) -> None:
    status = json.loads(json.dumps(describe(made.snapshot(), "1.2.3", 99, {})))
    assert (status["version"], status["pid"], status["uptime"]) == ("1.2.3", 99, 12.0)
    assert (status["ready"], status["stopping"]) == (True, False)
    assert [(one["state"], one["covered"]) for one in status["proxies"]] == [("ready", False)]
    web = status["services"]["web"]
    assert (web["scheme"], web["mode"], web["listen"]) == ("ports", "http", "127.0.0.1:8000")
    assert [worker["health"] for worker in web["workers"]] == ["up", "down"]


def test_a_status_has_the_roll_outs_and_whether_the_configuration_was_applied(made: Any) -> None:
    snapshot = made.snapshot(
        rollouts=(rollout(3, step(0, "watching", new_pid=9)),), config_ok=False,
        config_applied_at=1e9,
    )  # fmt: skip
    status = json.loads(json.dumps(describe(snapshot, "", 0, {})))
    assert (status["config_ok"], status["config_applied_at"]) == (False, 1e9)
    (found,) = status["rollouts"]
    assert (found["number"], found["state"], found["result"]) == (3, "rolling", "")
    assert found["steps"][0]["new_pid"] == 9


def test_upstreams_are_workers_without_a_process(made: Any) -> None:
    api = describe(made.snapshot(), "", 0, {})["services"]["api"]
    (upstream,) = api["workers"]
    assert (upstream["slot"], upstream["address"]) == (0, "127.0.0.1:8100")
    assert upstream["name"] == "api.internal:8100"
    assert api["names"] == [
        {
            "name": "api.internal:8100", "result": "found", "members": 1, "ttl": 5.0,
            "found_at": 9.5, "lookups": {"found": 3, "timeout": 1},
        }
    ]  # fmt: skip
    assert upstream["health"] == "up"
    assert "pid" not in upstream


def test_fields_that_no_proxy_has_reported_are_null(made: Any) -> None:
    status = describe(made.snapshot(made.proxy(stats={}), made.worker()), "", 0, {})
    (worker,) = status["services"]["web"]["workers"]
    assert worker["health"] is None
    (upstream,) = status["services"]["api"]["workers"]
    assert upstream["active"] is None


def test_a_status_has_every_process_of_a_slot_with_what_it_has_and_takes(made: Any) -> None:
    processes = (
        ProcessView("current", "ready", 11, "127.0.0.1:8101", 2.0, None),
        ProcessView("draining", "draining", 10, "127.0.0.1:8100", 60.04, 3, "draining"),
    )
    worker = made.worker(
        pid=11, processes=processes, crash_loop=True, last_exit="status 3",
        last_exit_reason="No module named 'shop'",
    )  # fmt: skip
    usage = {11: ProcessUsage(memory=1 << 20, fds=9, connections=5)}
    status = describe(made.snapshot(made.proxy(), worker), "", 0, {}, usage)
    (found,) = status["services"]["web"]["workers"]
    assert found["processes"] == [
        {
            "pid": 11, "part": "current", "state": "ready", "address": "127.0.0.1:8101",
            "link": "tcp", "age": 2.0, "memory": 1 << 20, "fds": 9, "connections": 5,
            "health": None,
        },
        {
            "pid": 10, "part": "draining", "state": "draining", "address": "127.0.0.1:8100",
            "link": "tcp", "age": 60.04, "memory": None, "fds": None, "connections": 3,
            "health": "draining",
        },
    ]  # fmt: skip
    assert found["crash_loop"]
    assert found["last_exit_reason"] == "No module named 'shop'"


def test_a_status_says_when_a_worker_is_started_next(made: Any) -> None:
    worker = made.worker(pid=None, state="crash_loop", crash_loop=True, next_start_s=12.34567)
    (found,) = describe(made.snapshot(worker), "", 0, {})["services"]["web"]["workers"]
    assert (found["state"], found["next_start"]) == ("crash_loop", 12.346)


@pytest.mark.parametrize("state", ["absent", "checking"])
def test_a_member_that_has_not_passed_a_check_is_down_with_its_reason(
    made: Any, state: str
) -> None:
    stats = made.proxy_stats(web=[made.row(0, state, reason="not started yet")])
    snapshot = made.snapshot(made.proxy(stats=stats), made.worker())
    (worker,) = describe(snapshot, "", 0, {})["services"]["web"]["workers"]
    assert (worker["health"], worker["reason"]) == ("down", "not started yet")


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
