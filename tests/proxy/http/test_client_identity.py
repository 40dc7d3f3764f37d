"""Who a client is, and how its requests are rewritten, changes as a whole while it is connected."""

from typing import Any

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.http1.request import rewriter_for

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n"


def use(harness: Harness, **keys: Any) -> None:
    """Rewrite what comes from now on as with these settings."""
    config = harness.service.config.model_copy(update=keys)
    harness.service.rewriter = rewriter_for(config, 0)
    for client in harness.connections:
        client.use_rewriter(harness.service.rewriter)


def counted(harness: Harness) -> int:
    return harness.service.client_limit.count("192.0.2.1")


def test_a_client_that_becomes_a_trusted_proxy_is_counted_no_more_and_again_when_it_ends_to_be_one(
    harness: Harness,
) -> None:
    client = harness.client()
    assert counted(harness) == 1
    for _ in range(2):
        use(harness, trusted_proxies=("192.0.2.0/24",))
        assert counted(harness) == 0
        client.send(GET)
        assert b"\r\nX-Forwarded-For: 203.0.113.1, 192.0.2.1\r\n" in harness.worker.received()
        harness.worker.send(OK)
        use(harness, trusted_proxies=())
        assert counted(harness) == 1
        client.send(GET)
        assert b"\r\nX-Forwarded-For: 192.0.2.1\r\n" in harness.worker.received()
        harness.worker.send(OK)


def test_a_trusted_proxy_that_reports_no_port_has_that_of_its_proxy_header(
    harness: Harness,
) -> None:
    client = harness.client(port=443)
    for trusted in ((), ("192.0.2.1",), (), ("192.0.2.1",)):
        use(harness, trusted_proxies=trusted)
        client.send(GET)
        assert harness.worker.received().count(b"\r\nX-Forwarded-Port: 443\r\n") == 1
        harness.worker.send(OK)


@pytest.mark.parametrize("keys", [{"trusted_proxies": ("192.0.2.1",)}, {"trusted_proxies": ()}])
def test_a_request_that_has_begun_goes_on_as_it_was_when_its_client_changes(
    harness: Harness, keys: Any
) -> None:
    client = harness.client()
    client.send(GET)
    use(harness, **keys)
    harness.worker.send(OK)
    assert client.received() == OK
    client.reset()
    assert counted(harness) == 0


def test_a_tunnel_stays_counted_as_it_is_until_it_ends(harness: Harness) -> None:
    client = harness.client()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    harness.worker.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    use(harness, trusted_proxies=("192.0.2.1",))
    assert counted(harness) == 0
    client.reset()
    assert counted(harness) == 0
