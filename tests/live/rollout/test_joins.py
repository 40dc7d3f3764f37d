"""Who asks for another reload while one runs gets what is on the disk then, as carefully as the
first one, and an end."""

import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import pids
from tests.support.live.versions import (
    PROGRAM,
    QUICK,
    Load,
    Reload,
    is_at,
    rollouts,
    served,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster


def joined(run: "Cluster") -> Reload:
    """Another reload, which has joined the one that runs."""
    before = run.err.count("somebody else asks for the same")
    made = Reload(run)
    run.until(lambda: run.err.count("somebody else asks for the same") > before)
    return made


def have_succeeded(run: "Cluster", before: set[int], *reloads: Reload) -> Any:
    """Wait for both; their only roll-out, after which all workers are of the third version."""
    for one in reloads:
        assert one.end() == 0, one.said
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"v3"}
    (only,) = rollouts(run)
    assert only["result"] == "succeeded"
    return only


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_version_that_hangs_is_corrected_by_the_next_reload_at_once(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, timeouts={"start": "1h", "stop": "5s"})
    before = pids(run)
    write(tmp_path, "never-ready v2")
    # It has read its version, so it stays what it is.
    hangs = PROGRAM.replace("time.sleep(3600)", 'pathlib.Path("hangs").touch(); time.sleep(3600)')
    (tmp_path / "program.py").write_text(hangs)
    first = Reload(run)
    run.until((tmp_path / "hangs").exists)
    write(tmp_path, "good v3")
    only = have_succeeded(run, before, first, joined(run))
    assert [step["state"] for step in only["steps"]] == ["done", "done"]
    assert "could not be replaced" not in run.err


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_version_that_falls_after_its_watch_is_corrected_by_the_next_reload(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, rollout={"watch": "2s"})
    before = pids(run)
    write(tmp_path, "short v2")
    first = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    # So the next one is not in the rotation when the first one falls.
    (tmp_path / "wait").touch()
    run.until(lambda: pids(run) - before)
    (tmp_path / "fall").touch()
    run.until(lambda: "no other one is replaced" in run.err)
    write(tmp_path, "good v3")
    second = joined(run)
    (tmp_path / "wait").unlink()
    have_succeeded(run, before, first, second)


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_who_joins_a_canary_has_one_of_its_own(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    proxied = scheme in ("ports", "handoff")
    keys = {"ejection": {"failures": 0, "share": "0%"}} if proxied else {}
    run = first_version(scheme, workers=3, rollout={"watch": "0s", "canary": "20s"}, **keys)
    before = pids(run)
    write(tmp_path, "good v2")
    first = Reload(run)
    run.until(lambda: any(one["state"] == "canary" for one in rollouts(run)))
    write(tmp_path, "failing v3")
    second = joined(run)
    load = Load(run)
    assert first.end() == 1, first.said
    assert second.end() == 1, second.said
    load.end()
    assert "the canary" in second.said
    (only,) = rollouts(run)
    assert only["result"] == "rolled_back"
    assert pids(run) == before
    assert served(run) == "v1"


def test_reloads_without_end_have_ends(first_version: "FirstVersion", tmp_path: "Path") -> None:
    run = first_version("ports")
    write(tmp_path, "good v2")

    def third_has_ended() -> bool:
        run.process.send_signal(signal.SIGHUP)
        return any(one["number"] == 3 and one["result"] for one in rollouts(run))

    run.until(third_has_ended)
    run.until(lambda: all(one["result"] for one in rollouts(run)))
    assert {one["result"] for one in rollouts(run)} == {"succeeded"}
    assert max(len(one["steps"]) for one in rollouts(run)) <= 4
    assert served(run) == "v2"
    assert run.metric("penstock_config_last_reload_successful") == 1


def test_a_removed_service_with_a_client_keeps_no_later_reload_waiting(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    write(tmp_path, "good v1")
    web = {"app": "program:app", "workers": 1, "rollout": QUICK, "access_log": "off"}
    api = {**web, "timeouts": {"stop": "1h"}}
    run = penstock(services={"web": web, "api": api}, top={"run_dir": str(tmp_path / "run")})
    host, port = run.address("api")
    with socket.create_connection((host, port)) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(60)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        run.configure({"web": web}, run_dir=str(tmp_path / "run"))
        first = Reload(run)
        run.until(lambda: any(one["state"] == "finishing" for one in rollouts(run)))
        write(tmp_path, "good v2")
        second = Reload(run)
        assert first.end() == 0, first.said
        assert second.end() == 0, second.said
        assert served(run) == "v2"
        # It is served on, as long as it has time for that.
        for _ in range(2):
            assert b"data" in client.recv(65536)
        # One of the same name has to wait, and is told so.
        run.configure({"web": web, "api": api}, run_dir=str(tmp_path / "run"))
        third = Reload(run)
        run.until(lambda: "api was removed" in rollouts(run)[-1]["reason"])
    assert third.end() == 0, third.said
    assert "waits: api was removed, and has to finish what it has first" in third.said
    assert [worker["health"] for worker in run.workers("api")] == ["up"]
