"""`penstock status` shows the state of every process and upstream in one line each."""

from typing import Any

import pytest

from penstock_supervisor.cli import status_table

WORKER = {"slot": 0, "state": "up", "health": "up", "reason": "passed its first check",
          "pid": 12, "address": "127.0.0.1:8101", "restarts": {}, "answers": True}  # fmt: skip


def shown(*workers: dict[str, Any], proxies: tuple[dict[str, Any], ...] = ()) -> list[str]:
    web = {"listen": "127.0.0.1:80", "scheme": "ports", "mode": "http", "workers": list(workers)}
    found = {"version": "1.0", "pid": 7, "uptime": 9.4, "ready": True, "stopping": False}
    return list(status_table.lines({**found, "proxies": proxies, "services": {"web": web}}))


def test_a_worker_that_serves_is_shown_as_up_without_a_reason() -> None:
    assert shown(WORKER) == [
        "penstock 1.0, pid 7, up 9 s, ready",
        "web on 127.0.0.1:80 (ports, http)",
        "  web/0  up  pid 12  127.0.0.1:8101",
    ]


def test_a_running_worker_outside_the_rotation_is_shown_with_its_reason() -> None:
    ejected = {**WORKER, "slot": 1, "health": "ejected", "reason": "5 failures in a row"}
    ejected["restarts"] = {"crash": 1}
    _, _, well, bad = shown(WORKER, ejected)
    assert well == "  web/0  up           pid 12  127.0.0.1:8101"
    assert bad == "  web/1  up, ejected  pid 12  127.0.0.1:8101  1 restart  5 failures in a row"


def test_an_upstream_is_shown_without_a_process() -> None:
    upstream = {"slot": 0, "address": "10.0.0.1:80", "health": "down", "reason": "refused"}
    assert shown(upstream)[-1] == "  web/0  down  10.0.0.1:80  refused"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": "given_up", "health": "absent", "pid": None}, "given up"),
        ({"state": "starting", "health": "checking"}, "starting"),
        ({"health": None}, "up"),
        ({"answers": False}, "up"),
        ({"state": None, "health": None}, "unknown"),
    ],
)
def test_the_state_of_the_process_is_shown_before_its_health(
    change: dict[str, Any], text: str
) -> None:
    assert shown({**WORKER, **change})[-1].split("  ")[2].rstrip() == text


def test_a_stuck_proxy_is_shown_with_its_listeners_taken_over_if_there_are_others() -> None:
    proxy = {"slot": 0, "state": "up", "pid": 5, "restarts": {}, "answers": False, "covered": True}
    other = {**proxy, "slot": 1, "answers": True, "covered": False}
    assert shown(WORKER, proxies=(proxy, other))[1] == (
        "  proxy/0  up, does not answer, listeners taken over by the others  pid 5"
    )
    assert shown(WORKER, proxies=(proxy,))[1] == "  proxy/0  up, does not answer  pid 5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (86400 * 40.5, "40 d")],
)
def test_a_duration_is_shown_in_one_unit(seconds: float, text: str) -> None:
    found = {"version": "1", "pid": 1, "uptime": seconds, "ready": False, "stopping": True}
    (line,) = status_table.lines({**found, "proxies": (), "services": {}})
    assert line == f"penstock 1, pid 1, up {text}, stopping"
