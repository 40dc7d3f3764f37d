"""The metrics page says how roll-outs ended, and whether the configuration could be read."""

from typing import Any

from tests.support.supervisor.fake_run import rollout

from penstock_supervisor.observability.prometheus import render
from penstock_supervisor.snapshot import ROLLOUT_RESULTS, Snapshot


def page(snapshot: Snapshot) -> list[str]:
    body, _ = render(snapshot, "")
    return body.decode().splitlines()


def test_roll_outs_are_counted_by_every_result_from_the_start(made: Any) -> None:
    found = page(made.snapshot(rollout_results={"aborted": 2}))
    for result in ROLLOUT_RESULTS:
        count = 2.0 if result == "aborted" else 0.0
        assert f'penstock_rollouts_total{{result="{result}"}} {count}' in found


def test_the_page_says_whether_one_runs(made: Any) -> None:
    ended = rollout(1, result="aborted")
    runs = page(made.snapshot(rollouts=(ended, rollout(2))))
    assert "penstock_rollout_in_progress 1.0" in runs
    assert "penstock_rollout_in_progress 0.0" in page(made.snapshot(rollouts=(ended,)))


def test_the_page_says_whether_the_last_reload_was_applied_and_when(made: Any) -> None:
    found = page(made.snapshot(config_ok=False, config_applied_at=5.5))
    assert "penstock_config_last_reload_successful 0.0" in found
    assert "penstock_config_last_reload_success_timestamp_seconds 5.5" in found
    assert "penstock_config_last_reload_successful 1.0" in page(made.snapshot())
