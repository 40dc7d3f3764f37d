"""Settings that need sockets to be seen: they take effect in a proxy that runs."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.proxy.running_proxy import RunningProxy, running_proxy, until

from penstock_proxy import messages
from penstock_proxy.config import Health, Limits, Timeouts

GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEADER: Final = b"PROXY TCP4 203.0.113.9 203.0.113.1 5000 443\r\n"


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


async def mode(proxy: RunningProxy, _: Path) -> None:
    """It cannot change: what a connection is depends on it."""
    target = proxy.target(await proxy.worker("w"))
    await proxy.start(proxy.service("web", target))
    assert await proxy.reconfigure(proxy.service("web", target, mode="tcp"))
    assert await proxy.get("web") == b"w"


async def send_proxy(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target))
    idle, busy = await proxy.client("web"), await proxy.client("web")
    assert await idle.get() == b"w"
    busy.send(GET.replace(b"/ ", b"/wait "))
    await until(lambda: len(worker.heads) == 2)
    for version, start in (("v1", b"PROXY TCP4 "), ("v2", b"\r\n\r\n"), ("", b"GET ")):
        await proxy.reconfigure(proxy.service("web", target, send_proxy=version))
        worker.heads.clear()
        for _attempt in range(2):
            (await proxy.client("web")).send(GET)
        # The signature of v2 ends what our worker takes for a head.
        await until(lambda: sum(head.startswith(start) for head in worker.heads) == 2)  # noqa: B023
    # Who was there before was served to the end, and then had to connect anew.
    assert await idle.ends() == b""
    worker.go_on.set()
    assert await busy.answer() == b"w"
    assert b"\r\nConnection: close\r\n" in busy.head


async def accept_proxy(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target, trusted = proxy.target(worker), ("127.0.0.1",)
    without = proxy.service("web", target, trusted_proxies=trusted)
    with_header = proxy.service("web", target, trusted_proxies=trusted, accept_proxy=True)
    await proxy.start(without)
    before = await proxy.client("web")
    assert await before.get() == b"w"
    await proxy.reconfigure(with_header)
    waits = await proxy.client("web")
    client = await proxy.client("web")
    client.send(HEADER + GET)
    assert await client.answer() == b"w"
    assert b"X-Forwarded-For: 203.0.113.9\r\n" in worker.heads[-1]
    await until(lambda: waiting_for_a_header(proxy) == 1)
    await proxy.reconfigure(without)
    # It was accepted when a header was due.
    waits.send(HEADER + GET)
    assert await waits.answer() == b"w"
    assert b"X-Forwarded-For: 203.0.113.9\r\n" in worker.heads[-1]
    assert await proxy.get("web") == await before.get() == await client.get() == b"w"
    proxy.send(messages.DRAIN, finish={}, within=20.0)


def waiting_for_a_header(proxy: RunningProxy) -> int:
    proxy_filter = proxy.proxy.services.by_name["web"].filter_chain.proxy_protocol
    return 0 if proxy_filter is None else len(proxy_filter.waiting)


async def sni(proxy: RunningProxy, _: Path) -> None:
    own, other = await proxy.worker("own"), await proxy.worker("other")
    targets = proxy.target(own), proxy.target(other)
    plain = proxy.service("web", targets[0], mode="tcp")
    routed = proxy.service("web", targets[0], mode="tcp", sni={"a.example": "other"})
    elsewhere = proxy.service("other", targets[1], mode="tcp")

    async def reached() -> str:
        """Whose worker gets a client that asks for a.example."""
        before = relayed(proxy)
        (await proxy.client("web")).send(hello("a.example"))
        await until(lambda: relayed(proxy) != before)
        return next(name for name, count in relayed(proxy).items() if count != before[name])

    await proxy.start(plain)
    assert await reached() == "web"
    await proxy.reconfigure(routed, elsewhere)
    assert await reached() == "other"
    # A service that clients were routed to may go; without a route they stay.
    await proxy.reconfigure(routed)
    assert await reached() == "web"
    await proxy.reconfigure(routed, proxy.service("other", targets[1], mode="tcp"))
    assert await reached() == "other"
    await proxy.reconfigure(plain)
    assert await reached() == "web"


def relayed(proxy: RunningProxy) -> dict[str, int]:
    """How many connections each service has relayed to its workers."""
    services = proxy.proxy.services.by_name.items()
    return {name: sum(one.counters.worker_connections.values()) for name, one in services}


def hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def handoff_window(proxy: RunningProxy, _: Path) -> None:
    target = proxy.target(await proxy.worker("w"), joined=False, up=False)
    target = target.model_copy(update={"address": ""})
    narrow = proxy.service("web", target, scheme="handoff", handoff_window=1)
    wide = proxy.service("web", target, scheme="handoff", handoff_window=3)
    await proxy.start(narrow)
    with ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end, name in ((ours, "proxy"), (theirs, "worker")):
            stack.enter_context(end)
            of_link = {"service": "web", "member": target.member, "link": 1, "end": name}
            proxy.send(messages.LINK, end, **of_link)
        proxy.send(messages.JOIN, service="web", member=target.member, link=1)
        await proxy.stats()
        service = proxy.proxy.services.by_name["web"]
        member = service.pool.member(target.member)
        service.health_checker.remove(target.member)
        service.pool.checked(member, ok=True, now=0.0, reason="")
        for _attempt in range(5):
            await proxy.client("web")
        await until(lambda: service.counters.connections == 5)
        assert service.counters.in_flight == 1
        await proxy.reconfigure(wide)
        await until(lambda: service.counters.in_flight == 3)
        # What is in flight is not called back for a narrower window.
        await proxy.reconfigure(narrow)
        assert (service.counters.in_flight, len(service.queue)) == (3, 2)
        service.health_checker.add(member)
        proxy.send(messages.UNLINK, service="web", link=1)
        await proxy.answer(messages.UNLINKED, link=1)


async def access_log(proxy: RunningProxy, folder: Path) -> None:
    await logged(proxy, folder, '"target":"/' + "x" * 200)


async def access_log_format(proxy: RunningProxy, folder: Path) -> None:
    await logged(proxy, folder, '"GET /' + "x" * 200, access_log_format="combined")


async def log_field(proxy: RunningProxy, folder: Path) -> None:
    short = Limits(log_field=64)
    await logged(proxy, folder, '"target":"/' + "x" * 60 + '..."', limits=short)


async def logged(proxy: RunningProxy, folder: Path, expected: str, **keys: Any) -> None:
    target, path = proxy.target(await proxy.worker("w")), folder / "log"
    plain = proxy.service("web", target)
    if keys:
        plain = proxy.service("web", target, access_log=str(path))
    await proxy.start(plain)
    await proxy.reconfigure(proxy.service("web", target, access_log=str(path), **keys))
    assert await proxy.get("web", "/" + "x" * 200) == b"w"
    await until(lambda: path.exists() and expected in path.read_text())


async def health_path(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target, health=Health(interval=3600.0)))
    await until(lambda: worker.connections)
    for number, path in enumerate(("/checked", "/another")):
        health = Health(path=path, interval=3600.0)
        await proxy.reconfigure(proxy.service("web", target, health=health))
        # It is up, so without a question it would be checked in an hour.
        proxy.send(messages.CONFIRM, service="web", member=target.member, seq=number)
        await proxy.answer(messages.CONFIRMED, seq=number, reason="")
        assert any(f" {path} ".encode() in head for head in worker.heads)


async def health_interval(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target = proxy.target(worker)
    seldom, often = Health(path="/a", interval=3600.0), Health(path="/a", interval=0.02)
    await proxy.start(proxy.service("web", target, health=seldom))
    await until(lambda: worker.connections)
    await proxy.reconfigure(proxy.service("web", target, health=often))
    await until(lambda: worker.connections > 5)


async def health_timeout(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target = proxy.target(worker)
    patient = Health(path="/wait", interval=0.02, timeout=3600.0)
    hasty = Health(path="/wait", interval=0.02, timeout=0.1)
    await proxy.start(proxy.service("web", target, health=patient))
    await until(lambda: worker.heads)
    await proxy.reconfigure(proxy.service("web", target, health=hasty))
    # The check that had begun is made anew, in the new time.
    worker.go_on.set()
    await until(lambda: len(worker.heads) > 2)
    worker.go_on.clear()
    await proxy.answer(messages.CHECKED, answered=False)


async def stop(proxy: RunningProxy, _: Path) -> None:
    worker = await proxy.worker("w")
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target, timeouts=Timeouts(stop=3600.0)))
    tunnel = await proxy.client("web")
    await tunnel.upgrade()
    await proxy.reconfigure(proxy.service("web", target, timeouts=Timeouts(stop=0.1)))
    await proxy.reconfigure()
    with pytest.raises(ConnectionResetError):
        await tunnel.ends()


ROWS: Final[dict[str, Callable[[RunningProxy, Path], Awaitable[None]]]] = {
    "mode": mode,
    "send_proxy": send_proxy,
    "accept_proxy": accept_proxy,
    "sni": sni,
    "handoff_window": handoff_window,
    "access_log": access_log,
    "access_log_format": access_log_format,
    "health.path": health_path,
    "health.interval": health_interval,
    "health.timeout": health_timeout,
    "timeouts.stop": stop,
    "limits.log_field": log_field,
}


@pytest.mark.parametrize("key", ROWS)
async def test_a_changed_setting_takes_effect(
    proxy: RunningProxy, tmp_path: Path, key: str
) -> None:
    await ROWS[key](proxy, tmp_path)
    # Whatever it was, the process is there and answers its supervisor.
    assert (await proxy.stats())["metrics"]["fds"]["channel"] == 1


async def test_a_worker_may_keep_its_checks_and_its_successor_has_the_new_ones(
    proxy: RunningProxy,
) -> None:
    old, new = await proxy.worker("old"), await proxy.worker("new")
    before, after = Health(path="/before", interval=0.02), Health(path="/after", interval=0.02)
    await proxy.start(proxy.service("web", proxy.target(old), health=before))
    await until(lambda: old.heads)
    kept = proxy.target(old, health=before)
    await proxy.reconfigure(proxy.service("web", kept, health=after))
    address = proxy.target(new).address
    proxy.send(messages.ADD_MEMBER, service="web", member=7, slot=0, weight=1, address=address)
    proxy.send(messages.JOIN, service="web", member=7)
    await until(lambda: new.heads)
    checks = len(old.heads)
    await until(lambda: len(old.heads) > checks + 2)
    assert all(b" /before " in head for head in old.heads)
    assert all(b" /after " in head for head in new.heads)
