"""Who is open is told only of settings that it has kept."""

from typing import Any

from tests.proxy.conftest import Harness

from penstock_proxy.config import Forwarding, Health, Timeouts
from penstock_proxy.runtime.changed_settings import telling


def told(harness: Harness, **changes: Any) -> int:
    """The number of steps that it takes to tell three clients of this change."""
    service = harness.service
    before = service.config
    service.configure(before.model_copy(update=changes))
    return sum(1 for _ in telling(service, before))


def test_nobody_is_looked_at_for_what_is_read_at_each_use(harness: Harness) -> None:
    for _ in range(3):
        harness.client()
    assert told(harness, health=Health(rise=5)) == 0
    assert told(harness, max_connections=5) == 0
    assert told(harness, timeouts=Timeouts(keepalive=5.0)) == 3
    assert told(harness, forwarding=Forwarding(via="")) == 3


def test_a_client_gets_the_rewriter_of_the_new_settings(harness: Harness) -> None:
    harness.client()
    (connection,) = harness.connections
    before = connection._rewriter
    told(harness, forwarding=Forwarding(via="other"))
    assert connection._rewriter is harness.service.rewriter
    assert connection._rewriter is not before
