"""The probes say in one line why a run is not ready, and what is wrong with one that is."""

from typing import Any

from penstock_supervisor.control.health import crash_loops, not_ready, services_without_worker


def loop(made: Any, slot: int = 0, **changes: Any) -> Any:
    values = {
        "state": "crash_loop", "pid": None, "crash_loop": True, "next_start_s": 12.3,
        "last_exit_reason": "exited with status 3 after 0.1 s", **changes,
    }  # fmt: skip
    return made.worker(slot, **values)


def stats(made: Any, *health: str, reason: str = "") -> dict[str, Any]:
    rows = [made.row(slot, state, reason=reason) for slot, state in enumerate(health)]
    found: dict[str, Any] = made.proxy_stats(web=rows, api=[made.row(0)])
    return found


def test_a_service_without_a_worker_in_rotation_is_named(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(stats=stats(made, "ejected", "checking")))
    assert services_without_worker(snapshot) == ("web",)
    assert services_without_worker(made.snapshot()) == ()
    assert services_without_worker(made.snapshot(made.worker())) == ("web", "api")


def test_without_a_proxy_the_worker_checks_decide_which_services_are_served(made: Any) -> None:
    pools = {"web": [made.row(0), made.row(1, "down")], "api": [made.row(0, "down")]}
    checks = {"metrics": {"services": {}}, "pools": pools}
    snapshot = made.snapshot(made.worker(0), made.worker(1), worker_checks=checks)
    assert services_without_worker(snapshot) == ("api",)


def test_a_service_whose_workers_are_all_in_a_crash_loop_says_when_one_is_started_next(
    made: Any,
) -> None:
    proxy = made.proxy(stats=stats(made, "absent", "absent"))
    snapshot = made.snapshot(proxy, loop(made, 0), loop(made, 1, next_start_s=7.9))
    assert not_ready(snapshot) == (
        "not ready: no worker in rotation for web: crash loop, next start in 8 s"
    )


def test_without_a_retry_it_says_that_nobody_starts_them(made: Any) -> None:
    proxy = made.proxy(stats=stats(made, "absent"))
    snapshot = made.snapshot(proxy, loop(made, next_start_s=None))
    assert not_ready(snapshot).endswith("for web: crash loop, not started again by itself")


def test_otherwise_each_worker_is_named_with_what_keeps_it_out(made: Any) -> None:
    proxy = made.proxy(stats=stats(made, "absent", "down", reason="failed 3 checks in a row"))
    starting = made.worker(0, state="starting")
    snapshot = made.snapshot(proxy, starting, made.worker(1))
    assert not_ready(snapshot) == (
        "not ready: no worker in rotation for web: web/0 starting, "
        "web/1 down (failed 3 checks in a row)"
    )


def test_a_worker_that_waits_for_its_restart_says_so(made: Any) -> None:
    proxy = made.proxy(stats=stats(made, "absent"))
    snapshot = made.snapshot(proxy, made.worker(state="exited", pid=None, next_start_s=0.6))
    assert not_ready(snapshot).endswith("for web: web/0 exited, next start in 1 s")


def test_of_many_workers_only_some_are_named(made: Any) -> None:
    proxy = made.proxy(stats=stats(made, *["absent"] * 6))
    workers = [made.worker(slot, state="starting") for slot in range(6)]
    assert not_ready(made.snapshot(proxy, *workers)).endswith("web/3 starting, and 2 more")


def test_an_upstream_is_named_by_its_address(made: Any) -> None:
    rows = [made.row(0, "down", reason="refused")]
    proxy = made.proxy(stats=made.proxy_stats(web=[made.row(0)], api=rows))
    snapshot = made.snapshot(proxy, made.worker())
    assert not_ready(snapshot) == (
        "not ready: no worker in rotation for api: 127.0.0.1:8100 down (refused)"
    )


def test_proxies_that_do_not_accept_are_a_reason(made: Any) -> None:
    proxy = made.proxy(state="crash_loop", pid=None, crash_loop=True, next_start_s=4.2)
    assert not_ready(made.snapshot(proxy)).startswith(
        "not ready: no proxy accepts: crash loop, next start in 4 s"
    )
    stuck = made.snapshot(covered=frozenset({0}))
    assert not_ready(stuck) == "not ready: no proxy accepts: proxy/0 does not answer"


def test_a_run_that_is_not_ready_for_an_unknown_reason_says_no_more(made: Any) -> None:
    assert not_ready(made.snapshot()) == "not ready"


def test_each_crash_loop_is_a_line_with_its_reason(made: Any) -> None:
    again = loop(made, 1, state="starting", next_start_s=None, last_exit_reason="")
    assert list(crash_loops(made.snapshot(made.proxy(), loop(made), again))) == [
        "web/0: crash loop, next start in 12 s: exited with status 3 after 0.1 s",
        "web/1: starting after a crash loop",
    ]
