"""`penstock status` shows the state of every process and upstream in one line each."""

from typing import Any

import pytest
from tests.support.supervisor.fake_run import rollout, step

from penstock_supervisor.cli import status_table
from penstock_supervisor.control import rollouts

WORKER = {"slot": 0, "state": "ready", "health": "up", "reason": "passed its first check",
          "pid": 12, "address": "127.0.0.1:8101", "restarts": {}, "answers": True}  # fmt: skip


def shown(*workers: dict[str, Any], proxies: tuple[dict[str, Any], ...] = ()) -> list[str]:
    web = {"listen": "127.0.0.1:80", "scheme": "ports", "mode": "http", "workers": list(workers)}
    found = {"version": "1.0", "pid": 7, "uptime": 9.4, "ready": True, "stopping": False}
    return list(status_table.lines({**found, "proxies": proxies, "services": {"web": web}}))


def test_a_worker_that_serves_is_shown_as_up_without_a_reason() -> None:
    assert shown(WORKER) == [
        "penstock 1.0, pid 7, up 9 s, ready",
        "web on 127.0.0.1:80 (ports, http)",
        "  web/0  ready  pid 12  127.0.0.1:8101",
    ]


def test_a_running_worker_outside_the_rotation_is_shown_with_its_reason() -> None:
    ejected = {**WORKER, "slot": 1, "health": "ejected", "reason": "5 failures in a row"}
    ejected["restarts"] = {"signal": 1}
    ejected["last_exit_reason"] = "was killed by SIGKILL after 3.0 s"
    _, _, well, bad = shown(WORKER, ejected)
    assert well == "  web/0  ready           pid 12  127.0.0.1:8101"
    assert bad == (
        "  web/1  ready, ejected  pid 12  127.0.0.1:8101  1 restart (signal)  "
        "5 failures in a row; the last one: was killed by SIGKILL after 3.0 s"
    )


def test_every_process_of_a_slot_is_shown_with_what_it_takes_and_still_has() -> None:
    processes = [
        {"pid": 12, "part": "current", "state": "ready", "address": "127.0.0.1:8101", "age": 5.0,
         "memory": 32 << 20, "fds": 11, "connections": 0},
        {"pid": 13, "part": "successor", "state": "starting", "address": "127.0.0.1:8102",
         "age": 1.0, "memory": 9 << 20, "fds": 4, "connections": None},
        {"pid": 9, "part": "draining", "state": "draining", "address": "127.0.0.1:8103",
         "age": 7300.0, "memory": None, "fds": None, "connections": 3},
    ]  # fmt: skip
    assert shown({**WORKER, "processes": processes})[2:] == [
        "  web/0  ready     pid 12  5 s  32 MiB  11 fds  127.0.0.1:8101",
        "  web/0  starting  pid 13  1 s  9 MiB   4 fds   127.0.0.1:8102  replaces the one above",
        (
            "  web/0  draining  pid 9   2 h                  127.0.0.1:8103  "
            "finishes what it has: 3 connections"
        ),
    ]


def test_one_that_is_ending_has_nothing_left_and_takes_no_memory() -> None:
    process = {"pid": 9, "part": "draining", "state": "draining", "address": "127.0.0.1:8103",
               "age": 4.0, "memory": 0, "fds": None, "connections": 0}  # fmt: skip
    *_, line = shown({**WORKER, "processes": [process]})
    assert "MiB" not in line
    assert line.endswith("  127.0.0.1:8103  has nothing left to finish, and ends")


def test_a_successor_in_the_rotation_is_shown_as_such_beside_the_one_that_it_replaces() -> None:
    process = {"address": "127.0.0.1:8101", "age": 5.0, "memory": None, "fds": None,
               "connections": None}  # fmt: skip
    current = {**process, "pid": 12, "part": "current", "state": "ready", "health": "up"}
    new = {**process, "pid": 13, "part": "successor", "state": "ready", "health": "checking"}
    for health, words in (
        ("checking", "ready, checking  pid 13  5 s  127.0.0.1:8101  replaces the one above"),
        ("up", "ready  pid 13  5 s  127.0.0.1:8101  in the rotation, replaces the one above"),
    ):
        processes = [current, {**new, "health": health}]
        *_, line = shown({**WORKER, "processes": processes})
        assert line == f"  web/0  {words}"


def test_a_crash_loop_is_shown_with_its_next_start_and_the_last_exit() -> None:
    looping = {
        **WORKER, "state": "crash_loop", "crash_loop": True, "pid": None, "health": "down",
        "reason": "process is gone", "next_start": 12.3, "last_exit_reason": "exited",
    }  # fmt: skip
    assert shown(looping)[-1] == (
        "  web/0  crash loop  127.0.0.1:8101  next start in 12 s; the last one: exited"
    )
    for_good = {**looping, "next_start": None}
    assert "not started again by itself" in shown(for_good)[-1]
    again = {**looping, "state": "ready", "next_start": None, "health": "up"}
    assert shown(again)[-1].startswith("  web/0  ready, after a crash loop  ")


def test_an_upstream_is_shown_without_a_process() -> None:
    upstream = {"slot": 0, "address": "10.0.0.1:80", "health": "down", "reason": "refused"}
    assert shown(upstream)[-1] == "  web/0  down  10.0.0.1:80  refused"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": "crash_loop", "health": "down", "pid": None}, "crash loop"),
        ({"state": "starting", "health": "down"}, "starting"),
        ({"health": None}, "ready"),
        ({"answers": False}, "ready"),
        ({"state": None, "health": None}, "unknown"),
    ],
)
def test_the_state_of_the_process_is_shown_before_its_health(
    change: dict[str, Any], text: str
) -> None:
    assert shown({**WORKER, **change})[-1].split("  ")[2].rstrip() == text


def test_a_stuck_proxy_is_shown_with_its_listeners_taken_over_if_there_are_others() -> None:
    proxy = {
        "slot": 0,
        "state": "ready",
        "pid": 5,
        "restarts": {},
        "answers": False,
        "covered": True,
    }
    other = {**proxy, "slot": 1, "answers": True, "covered": False}
    assert shown(WORKER, proxies=(proxy, other))[1] == (
        "  proxy/0  ready, does not answer, listeners taken over by the others  pid 5"
    )
    assert shown(WORKER, proxies=(proxy,))[1] == "  proxy/0  ready, does not answer  pid 5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (86400 * 40.5, "40 d")],
)
def test_a_duration_is_shown_in_one_unit(seconds: float, text: str) -> None:
    found = {"version": "1", "pid": 1, "uptime": seconds, "ready": False, "stopping": True}
    (line,) = status_table.lines({**found, "proxies": (), "services": {}})
    assert line == f"penstock 1, pid 1, up {text}, stopping"


def test_the_roll_outs_stand_under_the_run() -> None:
    view = rollouts.describe(rollout(2, step(0, "done", new_pid=9), result="succeeded"))
    found = {
        "version": "1.0", "pid": 7, "uptime": 9.4, "ready": True, "stopping": False, "proxies": [],
        "services": {}, "config_ok": False, "rollouts": [view],
    }  # fmt: skip
    assert list(status_table.lines(found)) == [
        "penstock 1.0, pid 7, up 9 s, ready",
        "  the last reload did not succeed",
        "  roll-out 2 succeeded at 2001-09-09 01:46:40, took 0 s; requests 10, failed 0",
    ]
