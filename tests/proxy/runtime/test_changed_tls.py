"""TLS is switched on and off, and asks for certificates, in a proxy that runs."""

import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from tests.support.proxy.certificates import send_certificate, trusting
from tests.support.proxy.running_proxy import Client, RunningProxy, running_proxy, until

from penstock_proxy import messages

GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


@pytest.mark.parametrize("first", ["certificates", "configuration"])
async def test_tls_is_switched_on_when_the_certificates_are_there(
    proxy: RunningProxy, first: str
) -> None:
    worker = await proxy.worker("w")
    plain = proxy.service("web", proxy.target(worker))
    tls = plain.model_copy(update={"tls": True})
    await proxy.start(plain)
    idle, busy = await proxy.client("web"), await proxy.client("web")
    tunnel = await proxy.client("web")
    await tunnel.upgrade()
    busy.send(GET.replace(b"/ ", b"/wait "))
    await until(lambda: len(worker.heads) == 2)
    assert await idle.get() == b"w"
    if first == "configuration":
        assert await proxy.reconfigure(tls) == ""
        # Without certificates nobody could be served, so it goes on as before.
        assert await proxy.get("web") == await idle.get() == b"w"
    send_certificate(proxy, "web")
    if first == "certificates":
        assert await proxy.reconfigure(tls) == ""
    await proxy.stats()
    client = await proxy.client("web", **trusting())
    assert await client.get() == b"w"
    assert b"X-Forwarded-Proto: https\r\n" in worker.heads[-1]
    refused = await proxy.client("web")
    refused.send(GET)
    assert b"this port speaks TLS" in await refused.answer()
    # What was accepted without TLS ends between two requests; a tunnel lives on.
    assert await idle.ends() == b""
    worker.go_on.set()
    assert await busy.answer() == b"w"
    assert b"\r\nConnection: close\r\n" in busy.head
    assert await tunnel.echo(b"ping") == b"ping"


async def test_tls_is_switched_off_and_on_again(proxy: RunningProxy) -> None:
    worker = await proxy.worker("w")
    plain = proxy.service("web", proxy.target(worker))
    tls = plain.model_copy(update={"tls": True})
    await proxy.start()
    assert await proxy.reconfigure(tls) == ""
    proxy.listen("web")
    # A new service without certificates lets its clients wait.
    early = await Client.connect(proxy.ports["web"])
    await proxy.stats()
    service = proxy.proxy.services.by_name["web"]
    assert not service.listeners.is_accepting
    send_certificate(proxy, "web")
    kept = await proxy.client("web", **trusting())
    assert await kept.get() == b"w"
    await proxy.reconfigure(plain)
    assert await kept.ends() == b""
    assert await proxy.get("web") == b"w"
    assert b"X-Forwarded-Proto: http\r\n" in worker.heads[-1]
    await proxy.reconfigure(tls)
    again = await proxy.client("web", **trusting())
    assert await again.get() == b"w"
    early.close()


async def test_clients_are_asked_for_certificates_from_now_on(proxy: RunningProxy) -> None:
    worker = await proxy.worker("w")
    tls = proxy.service("web", proxy.target(worker), tls=True)
    await proxy.start()
    await proxy.reconfigure(tls)
    proxy.listen("web")
    send_certificate(proxy, "web")
    before = await proxy.client("web", **trusting())
    assert await before.get() == b"w"
    send_certificate(proxy, "web", ca=True)
    await proxy.reconfigure(tls.model_copy(update={"verifies": True}))
    assert await before.ends() == b""
    client = await proxy.client("web", **trusting(with_certificate=True))
    assert await client.get() == b"w"
    assert b"\r\nClient-Cert: :" in worker.heads[-1]
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        await (await proxy.client("web", **trusting())).get()


async def test_bad_certificates_of_a_new_service_do_not_end_the_process(
    proxy: RunningProxy,
) -> None:
    web = proxy.service("web", proxy.target(await proxy.worker("w")))
    tls = proxy.service("tls", *web.targets, tls=True)
    await proxy.start(web)
    await proxy.reconfigure(web, tls)
    proxy.send(messages.TLS, service="tls", terms={}, of=1)
    bad: dict[str, Any] = {"names": [], "kind": "RSA", "chain": "x", "key": "y"}
    proxy.send(messages.CERTIFICATE, service="tls", **bad)
    assert await proxy.get("web") == b"w"
    send_certificate(proxy, "tls")
    proxy.listen("tls")
    client = await proxy.client("tls", **trusting())
    assert await client.get() == b"w"
