"""An overload is in the log at once, and however long it lasts, in a few lines."""

import pytest

from penstock_proxy.errors import MAX_CONNECTIONS, NO_DESCRIPTORS
from penstock_proxy.listener.overload_log import EVERY_S, OverloadLog


def test_an_overload_is_told_once_and_the_next_one_again(caplog: pytest.LogCaptureFixture) -> None:
    log = OverloadLog("web")
    log.full(MAX_CONNECTIONS, 1.0)
    log.full(MAX_CONNECTIONS, 1.0)
    for now in range(2, 10):
        log.full(MAX_CONNECTIONS, now)
        log.tick(now)
    assert caplog.messages == ["web accepts no more connections: it is full"]
    log.tick(9 + EVERY_S + 1)
    log.full(NO_DESCRIPTORS, 9 + EVERY_S + 1)
    assert caplog.messages[1:] == ["web accepts no more connections: no descriptors are left"]


def test_what_was_ended_and_refused_is_told_at_once_and_then_in_sums(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    log = OverloadLog("web")
    log.evicted("idle")
    log.tick(0.0)
    for now in range(1, int(EVERY_S)):
        log.evicted("idle")
        log.evicted("no_request")
        log.refused(2)
        log.tick(now)
    assert len(caplog.messages) == 1
    log.tick(EVERY_S)
    log.tick(EVERY_S + 1)
    assert caplog.messages == [
        "web: connections ended to make room: 1 idle, 0 without a request",
        "web: connections ended to make room: 9 idle, 9 without a request",
        "web: refused 18 that had waited too long to be accepted",
    ]
