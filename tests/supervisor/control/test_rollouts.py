"""A roll-out as JSON has every field, and its words say what happened to each worker."""

import json
from typing import Any

import pytest
from tests.support.supervisor.fake_run import rollout, step

from penstock_supervisor.control import rollouts
from penstock_supervisor.rollout.replacement_step import WITHDRAWN
from penstock_supervisor.snapshot import ROLLOUT_RESULTS, RolloutView


def described(view: RolloutView) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(rollouts.describe(view)))
    return found


def test_it_has_every_field_of_its_view() -> None:
    found = described(rollout(3, step(0, "done", new_pid=9), duration_s=1.23456))
    assert found.keys() == set(RolloutView._fields)
    assert found["duration_s"] == 1.235
    assert found["steps"][0]["new_pid"] == 9
    assert found["changes"] == ["web: 2 workers are replaced"]


def test_its_version_is_another_one_exactly_when_something_has_happened() -> None:
    one = rollout(1, step(0))
    assert rollouts.version(one) == rollouts.version(
        one._replace(duration_s=9.0, requests=99, failed=9)
    )
    for other in (
        rollout(1, step(0, "starting")), rollout(1, step(0), state="canary"),
        rollout(1, step(0), result="aborted"), rollout(2, step(0)),
    ):  # fmt: skip
        assert rollouts.version(one) != rollouts.version(other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "waiting"}, "waiting, pid 100"),
        ({"state": "starting", "new_pid": 200}, "starting, pid 100 -> 200"),
        ({"state": "done", "new_pid": 200}, "replaced, pid 100 -> 200"),
        ({"state": "done", "action": "add", "old_pid": None, "new_pid": 5}, "added, pid 5"),
        ({"state": "done", "action": "remove"}, "removed, pid 100"),
        ({"state": "done", "action": "roll_back", "new_pid": 7}, "rolled back, pid 100 -> 7"),
        (
            {"state": "failed", "new_pid": 200, "reason": "exited with status 1"},
            "not replaced, new pid 200: exited with status 1",
        ),
        ({"state": "failed", "action": "roll_back", "old_pid": None}, "not rolled back"),
        ({"state": "starting"}, "starting, replaces pid 100"),
        ({"state": "starting", "action": "add", "old_pid": None}, "starting"),
        ({"state": "failing", "new_pid": 9, "reason": "worse"}, "failing, new pid 9: worse"),
        (
            {"state": "withdrawn", "new_pid": 9, "reason": WITHDRAWN},
            f"withdrawn, new pid 9: {WITHDRAWN}",
        ),
        ({"state": "draining", "action": "remove"}, "draining, pid 100"),
    ],
)
def test_each_step_has_its_words(changes: dict[str, Any], words: str) -> None:
    assert rollouts.step_words(step(0, **changes)._asdict()) == words


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (
            rollout(3, step(0, "done"), step(1), duration_s=12.4),
            "roll-out 3: rolling, 1 of 2 workers done, 12 s so far",
        ),
        (rollout(3, state="rolling_back"), "roll-out 3: rolling back, 0 s so far"),
        (
            rollout(3, result="succeeded", duration_s=5.0),
            "roll-out 3 succeeded at 2001-09-09 01:46:45, took 5 s",
        ),
        (
            rollout(3, result="aborted", reason="web/0 is not ready"),
            "roll-out 3 aborted at 2001-09-09 01:46:40, took 0 s: web/0 is not ready",
        ),
        (
            rollout(3, result="aborted", reason="web/0 is not ready", outcome="the old one serves"),
            (
                "roll-out 3 aborted at 2001-09-09 01:46:40, took 0 s: web/0 is not ready; "
                "the old one serves"
            ),
        ),
        (
            rollout(3, result="superseded", superseded_by=4, reason="superseded by roll-out 4"),
            "roll-out 3 superseded by 4 at 2001-09-09 01:46:40, took 0 s",
        ),
    ],
)
def test_a_heading_says_where_it_is(view: RolloutView, line: str) -> None:
    assert rollouts.heading(described(view)) == line


@pytest.mark.parametrize("result", ROLLOUT_RESULTS)
def test_every_result_says_what_it_means(result: str) -> None:
    text = rollouts.outcome(described(rollout(3, result=result)))
    assert text.startswith(f"roll-out 3 {result.replace('_', ' ')}")
    by = rollouts.outcome(described(rollout(3, result="superseded", superseded_by=4)))
    assert by == "roll-out 3 superseded by roll-out 4"
    half = rollout(3, result="aborted", outcome="web/0 stayed on the new version")
    text = rollouts.outcome(described(half))
    assert text == "roll-out 3 aborted: web/0 stayed on the new version"
    why = rollouts.outcome(described(half._replace(reason="web/1: exited with status 1")))
    assert why == (
        "roll-out 3 aborted: web/1: exited with status 1; web/0 stayed on the new version"
    )
    good = rollout(3, result="succeeded", outcome="the configuration is in force")
    text = rollouts.outcome(described(good))
    assert text == "roll-out 3 succeeded: the configuration is in force"


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ({"requests": 1203, "failed": 0}, "requests 1203, failed 0"),
        ({"requests": 1203, "failed": None}, "requests 1203, failed not counted"),
        ({"requests": None, "failed": 2}, "connections failed 2"),
        ({"requests": None, "failed": None}, "requests not counted"),
        (
            {"requests": 9, "uncounted": ("proxy/0 was killed by SIGKILL",)},
            (
                "requests at least 9, failed at least 0 "
                "(proxy/0 was killed by SIGKILL: what it had is not known)"
            ),
        ),
        (
            {"requests": 9, "uncounted": tuple("abcdef"), "uncounted_services": ("raw",)},
            (
                "requests at least 9, failed at least 0 "
                "(a, b, c, d, and 2 more: what they had is not known); not counted: raw"
            ),
        ),
        (
            {"requests": 9, "uncounted": ("web/1 did not answer at the beginning",)},
            (
                "requests about 9, failed about 0 "
                "(web/1 did not answer at the beginning: what it had is not known)"
            ),
        ),
        (
            {"requests": 9, "uncounted_services": ("api", "raw")},
            "requests 9, failed 0; not counted: api, raw",
        ),
        (
            {"requests": None, "failed": 2, "uncounted_services": ("api",)},
            "connections failed 2; not counted: api",
        ),
    ],
)
def test_the_requests_are_those_that_somebody_counts(counted: dict[str, Any], words: str) -> None:
    assert rollouts.requests(described(rollout(**counted))) == words


def test_a_status_has_what_runs_and_the_last_one_that_ended() -> None:
    views = [
        rollout(1, result="aborted", reason="too old"),
        rollout(2, step(0, "done"), result="succeeded", duration_s=3.0),
        rollout(3, step(0, "done"), step(1, "watching", new_pid=9), step(2), duration_s=7.0),
    ]
    status = {"config_ok": True, "rollouts": [described(view) for view in views]}
    assert list(rollouts.lines(status)) == [
        "roll-out 3: rolling, 1 of 3 workers done, 7 s so far",
        "  web/1 watching, pid 101 -> 9",
        "roll-out 2 succeeded at 2001-09-09 01:46:43, took 3 s; requests 10, failed 0",
    ]
    assert list(rollouts.lines({"config_ok": True, "rollouts": []})) == []
    (line,) = rollouts.lines({"config_ok": False, "rollouts": []})
    assert line == "the last reload did not succeed"
    running = {"config_ok": False, "rollouts": [described(views[2])]}
    assert next(iter(rollouts.lines(running))).startswith("roll-out 3: rolling")
    refused = {"reason": "web.workers: expected at least 1", "at": 1e9 + 60}
    (line,) = rollouts.lines({"config_ok": False, "reload_refused": refused, "rollouts": []})
    assert line == (
        "the last reload, at 2001-09-09 01:47:40, was refused, and nothing is changed: "
        "web.workers: expected at least 1"
    )
