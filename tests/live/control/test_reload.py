"""`penstock reload` says whether the new version serves; a wrong file changes nothing."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import DEMO
from tests.support.live.wire import WAIT_S

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

SCHEMES = ("ports", "handoff", "shared", "reuseport")


def started(penstock: "Penstock", **keys: Any) -> "Cluster":
    return penstock(app=DEMO, workers=2, top={"run_dir": "./run"}, **keys)


def reload(run: "Cluster", *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable, "-m", "penstock_supervisor", "reload", "-c", "penstock.toml", *words,
        ],
        cwd=run.folder, capture_output=True, text=True, timeout=4 * WAIT_S, check=False,
    )  # fmt: skip


def told(run: "Cluster") -> str:
    """The errors in the log."""
    return "\n".join(line for line in run.err.splitlines() if " ERROR " in line)


def pids(run: "Cluster") -> list[int]:
    return [worker["pid"] for worker in run.workers()]


def edit(run: "Cluster", old: str, new: str) -> None:
    file = run.folder / "penstock.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_ends_when_all_workers_are_new_and_counts_the_requests_meanwhile(
    penstock: "Penstock", scheme: str
) -> None:
    run = started(penstock, scheme=scheme)
    before, over, sent = pids(run), threading.Event(), [0]

    def load() -> None:
        while not over.is_set():
            assert run.get()[0] == 200
            sent[0] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        done = reload(run, "--json")
    finally:
        over.set()
        thread.join(WAIT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["result"], found["failed"]) == ("succeeded", 0)
    assert 0 < found["requests"] <= sent[0]
    assert {step["old_pid"] for step in found["steps"]} == set(before)
    assert {step["new_pid"] for step in found["steps"]} == set(pids(run))
    assert {step["state"] for step in found["steps"]} == {"done"}
    assert run.metric("penstock_rollouts_total", result="succeeded") == 1
    assert run.metric("penstock_rollout_in_progress") == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_version_that_cannot_start_is_exit_1_with_its_last_words(
    penstock: "Penstock", program: str, scheme: str
) -> None:
    run = penstock(app=program, workers=2, scheme=scheme, top={"run_dir": "./run"})
    run.may_trace = True
    before = pids(run)
    (run.folder / "program.py").write_text("raise RuntimeError('no database')\n")
    done = reload(run)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("requests ")
    reason, *detail = done.stderr.splitlines()
    assert reason.startswith("penstock: roll-out 1 aborted: web/0: ")
    assert reason.endswith("; the old version serves")
    assert "no database" in done.stderr
    assert all(line.startswith("    ") for line in detail)
    assert pids(run) == before
    # In the log it is one error. The traceback stands there once, as the worker wrote it.
    assert told(run).count("no database") == len(told(run).splitlines()) == 1
    assert run.err.count("| Traceback (most recent call last)") == 1
    assert run.err.count("Traceback") == 1
    # And the worker that stays is not shown with the exit of another one.
    assert {worker["last_exit"] for worker in run.workers()} <= {"", None}
    assert run.get()[0] == 200
    assert run.metric("penstock_rollouts_total", result="aborted") == 1
    assert run.metric("penstock_config_last_reload_successful") == 0


def test_a_changed_setting_is_applied_and_nobody_is_replaced(penstock: "Penstock") -> None:
    run = started(penstock)
    before, wire = pids(run), run.connect()
    assert wire.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    edit(run, '"workers" = 2', '"workers" = 2\nlimits = { target = "256B" }')
    done = reload(run)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:2] == [
        "web.limits.target: 8KiB -> 256B",
        "web: its workers are not replaced",
    ]
    assert said[-1] == "roll-out 1 succeeded: the configuration is in force"
    assert pids(run) == before
    assert run.get(f"/{'x' * 300}")[0] == 414
    # Who was connected before is still connected.
    assert wire.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200


def test_who_waits_no_longer_does_not_end_the_roll_out(penstock: "Penstock") -> None:
    run = started(penstock)
    before = pids(run)
    done = reload(run, "--timeout", "1ms")
    assert (done.returncode, "roll-out 1 goes on" in done.stderr) == (1, True)
    run.until(lambda: run.status()["rollouts"][0]["result"] == "succeeded")
    assert not set(pids(run)) & set(before)


def test_a_broken_file_is_exit_2_with_all_problems_and_changes_nothing(
    penstock: "Penstock",
) -> None:
    run = started(penstock)
    before = pids(run)
    edit(run, '"workers" = 2', '"workers" = 0')
    done = reload(run)
    assert (done.returncode, done.stdout) == (2, "")
    assert "service.web.workers: expected at least 1" in done.stderr
    assert pids(run) == before
    assert run.metric("penstock_config_last_reload_successful") == 0
    status = run.status()
    assert (status["config_ok"], status["rollouts"]) == (False, [])
    # It is said once to who has asked, and the operator finds it in the log and in the status.
    assert done.stderr.count("expected at least 1") == 1
    wrong = "service.web.workers: expected at least 1"
    assert wrong in status["reload_refused"]["reason"]
    assert "was refused, and nothing is changed: " in run.get("/", "admin")[1]
    assert told(run).count(wrong) == 1
    # HUP says the same.
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: told(run).count(wrong) == 2)
    edit(run, '"workers" = 0', '"workers" = 2')
    assert reload(run).returncode == 0
    assert run.metric("penstock_config_last_reload_successful") == 1
    assert run.status()["reload_refused"] is None
    assert not set(pids(run)) & set(before)


def test_a_file_that_is_no_toml_is_told_once(penstock: "Penstock") -> None:
    run = started(penstock)
    edit(run, '"workers" = 2', '"workers" = [')
    done = reload(run)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert run.status()["config_ok"] is False


def test_a_change_that_needs_a_restart_is_refused_by_its_name(penstock: "Penstock") -> None:
    run = started(penstock, scheme="shared")
    before = pids(run)
    edit(run, '"shared"', '"reuseport"')
    for words in ((), ("--dry-run",)):
        done = reload(run, *words)
        assert done.returncode == 2
        assert done.stderr.startswith('penstock: service.web.scheme: "shared" -> "reuseport"; only')
    assert pids(run) == before


def test_a_dry_run_says_what_would_be_done_and_does_nothing(penstock: "Penstock") -> None:
    run = started(penstock)
    before = pids(run)
    edit(run, '"workers" = 2', '"workers" = 3\nbalance = "random"')
    done = reload(run, "--dry-run")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            'web.balance: "round_robin" -> "random"',
            "web.workers: 2 -> 3",
            "web: its workers are not replaced",
            "web: 1 worker is added",
            "nothing is changed: this was a dry run",
        ],
    )
    assert pids(run) == before
    assert run.status()["rollouts"] == []


def test_only_the_workers_of_a_service_that_is_named_are_replaced(penstock: "Penstock") -> None:
    demo = {"app": DEMO, "access_log": "off", "workers": 1}
    run = penstock(services={"web": demo, "api": demo}, top={"run_dir": "./run"})
    (web,), (api,) = ([one["pid"] for one in run.workers(name)] for name in ("web", "api"))
    done = reload(run, "api")
    assert done.returncode == 0, done.stderr
    assert "web: unchanged, its workers are not replaced" in done.stdout.splitlines()
    assert [one["pid"] for one in run.workers("web")] == [web]
    assert [one["pid"] for one in run.workers("api")] != [api]
    done = reload(run, "shop")
    assert done.returncode == 2
    assert done.stderr == 'penstock: there is no service "shop", only api, web\n'
    done = reload(run, "shop", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["problems"] == ['there is no service "shop", only api, web']
    assert told(run).count('there is no service "shop"') == 2


def test_hup_replaces_all_and_the_result_is_in_the_status(penstock: "Penstock") -> None:
    run = started(penstock)
    before = pids(run)
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: [one["result"] for one in run.status()["rollouts"]] == ["succeeded"])
    assert not set(pids(run)) & set(before)


def test_a_run_is_found_by_its_own_file_only(penstock: "Penstock", tmp_path: Path) -> None:
    run = started(penstock)
    before = pids(run)
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "penstock.toml").read_text())
    done = reload(run, "-c", "other.toml")
    assert done.returncode == 2
    assert done.stderr == (
        f"penstock: {other}: this run was started with {tmp_path / 'penstock.toml'}\n"
    )
    assert pids(run) == before
