"""`penstock reload` waits, says what happened to each worker, and exits as the roll-out ended.

Covers `cli/control`, `cli/progress` and `cli/runs`.
"""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.supervisor.fake_run import FakeRun, rollout, served, step

from penstock_supervisor.cli import main, progress
from penstock_supervisor.control import rollouts
from penstock_supervisor.errors import NotNowError, ReloadRefused, UnknownServiceError
from penstock_supervisor.snapshot import ReloadAnswer, RolloutView

WAIT_S = 30.0


class Served:
    """A fake run in a thread of its own, as a command meets a run in another process."""

    def __init__(self, folder: Path, run: FakeRun, snapshot: Any) -> None:
        self.run = run
        self.path = str(folder / "run")
        self._folder = folder
        self._snapshot = snapshot
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The run is gone, and with it its socket."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(WAIT_S)

    def put(self, *views: RolloutView) -> None:
        for view in views:
            self._loop.call_soon_threadsafe(self.run.records.put, view)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with served(self._folder, self.run, self._snapshot):
            self._ready.set()
            await self._over.wait()


@pytest.fixture
def run(tmp_path: Path, made: Any) -> Iterator[Served]:
    with Served(tmp_path, FakeRun(), made.snapshot()) as one:
        yield one


def reload(run: Served, *words: str) -> int:
    return main(["reload", "--run-dir", run.path, *words])


def begins(run: Served, *views: RolloutView) -> None:
    """A reload leads to a roll-out that goes through these views."""
    for view in views:
        run.run.records.put(view)


OLD = rollout(1, step(0), step(1), requests=None)
HALF = rollout(1, step(0, "done", new_pid=200), step(1, "watching", new_pid=201))
SUCCEEDED = rollout(
    1, step(0, "done", new_pid=200), step(1, "done", new_pid=201), result="succeeded",
    requests=1203, failed=0, outcome="the new version serves",
)  # fmt: skip
ABORTED = rollout(
    1, step(0, "failed", new_pid=200, reason="exited with status 1"), step(1), result="aborted",
    reason="web/0 exited with status 1", detail="Traceback\n  boom\x1b[31m\n",
    outcome="the old version serves",
)  # fmt: skip


def test_it_waits_and_says_what_happened_to_each_worker(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.on_reload = lambda: begins(run, SUCCEEDED)
    assert reload(run) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "web: 2 workers are replaced",
        "roll-out 1 has begun",
        "web/0 replaced, pid 100 -> 200",
        "web/1 replaced, pid 101 -> 201",
        "requests 1203, failed 0",
        "roll-out 1 succeeded: the new version serves",
    ]
    assert run.run.calls == [("reload", (), False)]


def test_what_happens_meanwhile_is_told_once(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin() -> None:
        begins(run, OLD)
        threading.Timer(0.3, run.put, (HALF,)).start()
        threading.Timer(0.6, run.put, (SUCCEEDED,)).start()

    run.run.on_reload = begin
    assert reload(run) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2:5] == [
        "web/0 replaced, pid 100 -> 200",
        "web/1 watching, pid 101 -> 201",
        "web/1 replaced, pid 101 -> 201",
    ]


def test_an_aborted_one_is_told_with_its_reason_and_detail(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.on_reload = lambda: begins(run, ABORTED)
    assert reload(run) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == [
        "web/0 not replaced, new pid 200: exited with status 1",
        "requests 10, failed 0",
    ]
    assert err.splitlines() == [
        "penstock: roll-out 1 aborted: web/0 exited with status 1; the old version serves",
        "    Traceback",
        "      boom\\x1b[31m",
    ]


@pytest.mark.parametrize("result", ["rolled_back", "superseded", "cancelled"])
def test_the_exit_status_is_1_unless_the_new_version_serves(
    run: Served, capsys: pytest.CaptureFixture[str], result: str
) -> None:
    run.run.on_reload = lambda: begins(run, rollout(1, result=result, superseded_by=None))
    assert reload(run) == 1
    assert f"penstock: roll-out 1 {result.replace('_', ' ')}" in capsys.readouterr().err


def test_json_is_the_roll_out_and_nothing_else(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.on_reload = lambda: begins(run, ABORTED)
    assert reload(run, "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["result"], found["steps"][0]["state"]) == ("aborted", "failed")
    assert RolloutView._fields == tuple(key for key in found if key != "version")


def test_services_are_named_and_no_wait_does_not_wait(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.answer = ReloadAnswer(5, True, ("web: 2 workers are replaced",))
    assert reload(run, "web", "api", "--no-wait") == 0
    assert run.run.calls == [("reload", ("web", "api"), False)]
    assert capsys.readouterr().out.splitlines() == [
        "web: 2 workers are replaced",
        "roll-out 5 runs already, and does this as well",
    ]
    assert reload(run, "--no-wait", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rollout"] == 5


@pytest.mark.parametrize(
    ("joined", "said"), [(False, "is asked for"), (True, "waits already, and does this as well")]
)
def test_one_that_waits_has_not_begun(
    run: Served, capsys: pytest.CaptureFixture[str], said: str, *, joined: bool
) -> None:
    run.run.answer = ReloadAnswer(5, joined, (), waits=True)
    assert reload(run, "--no-wait") == 0
    assert capsys.readouterr().out == f"roll-out 5 {said}\n"


def test_a_dry_run_says_what_would_be_done(run: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert reload(run, "--dry-run") == 0
    assert run.run.calls == [("reload", (), True)]
    assert capsys.readouterr().out.splitlines() == [
        "web: 2 workers are replaced",
        "nothing is changed: this was a dry run",
    ]
    assert reload(run, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["changes"] == ["web: 2 workers are replaced"]


def test_a_broken_configuration_is_told_problem_by_problem(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.refusal = ReloadRefused(("web.toml: line 1: no", "user: only a restart"))
    assert reload(run) == 2
    assert capsys.readouterr().err.splitlines() == [
        "penstock: web.toml: line 1: no",
        "penstock: user: only a restart",
    ]
    assert reload(run, "--json") == 2
    out, err = capsys.readouterr()
    assert (len(json.loads(out)["problems"]), err) == (2, "")


@pytest.mark.parametrize(
    ("refusal", "status", "said"),
    [
        (UnknownServiceError("shop", ["web"]), 2, 'there is no service "shop", only web'),
        (NotNowError("not while it stops"), 1, "not while it stops"),
    ],
)
def test_what_is_not_possible_is_one_line(
    run: Served,
    capsys: pytest.CaptureFixture[str],
    refusal: Exception,
    status: int,
    said: str,
) -> None:
    run.run.refusal = refusal
    assert reload(run, "shop") == status
    assert capsys.readouterr().err == f"penstock: {said}\n"
    assert reload(run, "shop", "--json") == status
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"error": said, "problems": [said]}, "")


def test_another_file_than_the_runs_own_is_refused(
    run: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own, other = tmp_path / "web.toml", tmp_path / "other.toml"
    for file in (own, other):
        file.write_text(f'run_dir = "{run.path}"\n')
    run.run.config_file = str(own)
    run.run.on_reload = lambda: begins(run, SUCCEEDED)
    assert main(["reload", "-c", str(other)]) == 2
    said = capsys.readouterr().err
    assert said == f"penstock: {other}: this run was started with {own}\n"
    assert main(["reload", "-c", str(own)]) == 0


def test_after_its_time_it_waits_no_longer_and_the_roll_out_goes_on(
    run: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run.on_reload = lambda: begins(run, HALF)
    assert reload(run, "--timeout", "10ms") == 1
    said = capsys.readouterr().err
    assert said == (
        "penstock: it has not ended after 0.01 s; roll-out 1 goes on: see penstock status\n"
    )
    assert reload(run, "--timeout", "10ms", "--json") == 1
    out, err = capsys.readouterr()
    assert err == said
    assert [one["state"] for one in json.loads(out)["steps"]] == ["done", "watching"]


@pytest.mark.parametrize("time", ["0", "0s", "-1s", "5", "soon", "", "5 m", "nan"])
def test_a_time_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], time: str) -> None:
    assert main(["reload", "--timeout", time]) == 2
    said = f'expected a time above 0 with its unit, such as "90s" or "5m", not "{time}"'
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--no-wait", "--dry-run"])
def test_a_time_to_wait_makes_no_sense_where_nothing_is_waited_for(
    capsys: pytest.CaptureFixture[str], other: str
) -> None:
    assert main(["reload", "--timeout", "5s", other]) == 2
    assert f"--timeout and {other}: there is nothing to wait for" in capsys.readouterr().err


def test_a_run_that_ends_meanwhile_is_told(run: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def begin() -> None:
        begins(run, HALF)
        threading.Timer(0.3, run.end).start()

    run.run.on_reload = begin
    assert reload(run) == 1
    said = capsys.readouterr().err
    assert said == (
        f"penstock: the run with pid {os.getpid()} has ended, and roll-out 1 was under way\n"
    )


def test_without_a_run_the_exit_status_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reload", "--run-dir", str(tmp_path / "none")]
    assert main(words) == 3
    said = capsys.readouterr().err.removeprefix("penstock: ").rstrip()
    assert main([*words, "--json"]) == 3
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"error": said, "problems": [said]}, "")


def started(run: Served, *words: str, **more: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "penstock_supervisor", "reload", "--run-dir", run.path, *words],
        **more,
    )


def test_ctrl_c_ends_the_waiting_and_not_the_roll_out(run: Served) -> None:
    begun = threading.Event()

    def begin() -> None:
        begins(run, HALF)
        begun.set()

    run.run.on_reload = begin
    process = started(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert err.decode() == (
        "penstock: no longer waiting; roll-out 1 goes on: see penstock status\n"
    )
    assert begun.is_set()


def test_json_has_the_roll_out_as_it_was_at_ctrl_c(run: Served) -> None:
    looks, looked = count(1), threading.Event()
    views = run.run.rollouts

    def look() -> tuple[RolloutView, ...]:
        # Each question without a wait looks twice, so it has the answer to the first one now.
        if next(looks) > 2:
            looked.set()
        return views()

    run.run.rollouts = look  # type: ignore[method-assign]
    run.run.on_reload = lambda: begins(run, HALF)
    with started(run, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert looked.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert b"no longer waiting" in err
    assert [one["state"] for one in json.loads(out)["steps"]] == ["done", "watching"]


def test_on_a_terminal_the_lines_change_in_place(run: Served) -> None:
    def begin() -> None:
        begins(run, OLD)
        threading.Timer(0.3, run.put, (HALF,)).start()
        threading.Timer(0.6, run.put, (SUCCEEDED,)).start()

    run.run.on_reload = begin
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    process = started(run, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with process, suppress(OSError):
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0
    # Up, and over the line again; and the cursor is shown at the end.
    assert "\x1b[1A" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    assert "web/1" in text
    assert "roll-out 1 succeeded: the new version serves" in text


def test_a_worker_that_is_replaced_twice_is_told_twice_and_not_again_and_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = progress.Lines()
    first, second = step(0, "done", new_pid=200), step(0, "starting", old_pid=200)
    for again in (second, second, second._replace(state="done", new_pid=300)):
        lines.show(rollouts.describe(rollout(1, first, again)))
    assert capsys.readouterr().out.splitlines() == [
        "web/0 replaced, pid 100 -> 200",
        "web/0 starting, replaces pid 200",
        "web/0 replaced, pid 200 -> 300",
    ]


def states(*states_: str) -> list[progress.Step]:
    return [step(slot, state)._asdict() for slot, state in enumerate(states_)]


def test_of_many_workers_those_that_matter_are_shown() -> None:
    many = states(*["done"] * 300, "failed", "watching", *["waiting"] * 200)
    shown, hidden = progress.visible(many, 10)
    assert (len(shown), hidden) == (9, 493)
    assert [one["slot"] for one in shown] == list(range(300, 309))
    assert progress.visible(many[:5], 10) == (many[:5], 0)
    ended, hidden = progress.visible(states(*["done"] * 20), 5)
    assert ([one["slot"] for one in ended], hidden) == ([16, 17, 18, 19], 16)
    assert len(progress.visible(many, -3)[0]) == 1


def test_a_roll_out_of_many_workers_fits_into_the_window() -> None:
    many = rollout(1, *[step(slot) for slot in range(100)])
    table = progress._table(json.loads(json.dumps(rollouts.describe(many))), 10)
    assert table.row_count == 11
