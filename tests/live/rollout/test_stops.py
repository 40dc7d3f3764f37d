"""A run that is stopped in the middle of a roll-out ends as any other, and leaves nothing."""

import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import SCHEMES
from tests.support.live.versions import is_at, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion

VERSIONS = {
    "starting": "never-ready v2",
    "watching": "good v2",
    "canary": "good v2",
    "draining": "good v2",
}
"""By the state in which the roll-out is when the run is stopped."""


@pytest.mark.parametrize("state", VERSIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stop_at_any_step_is_a_stop(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str, state: str
) -> None:
    rollout = {"watch": "1h" if state == "watching" else "0s"}
    if state == "canary":
        rollout["canary"] = "1h"
    workers = 2 if state == "canary" else 1
    run = first_version(scheme, workers=workers, rollout=rollout, timeouts={"stop": "5s"})
    # What one has is not finished, so an old worker drains until it is cut.
    upload = run.connect()
    upload.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    write(tmp_path, VERSIONS[state])
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: is_at(run, state), state)
    if state != "draining":
        upload.send(b"cd")
        assert upload.answer().status == 200
    # All processes have ended then.
    assert run.stop() == 0
    assert "roll-out 1 is cancelled" in run.err
    assert "Traceback" not in run.said
