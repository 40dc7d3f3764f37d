"""Upstreams are added, removed and weighed anew in a proxy that runs, by their numbers."""

from collections.abc import AsyncIterator

import pytest
from tests.support.proxy.running_proxy import RunningProxy, Worker, running_proxy, until

from penstock_proxy import messages
from penstock_proxy.config import Target, Timeouts
from penstock_proxy.config_parts import parts_of_targets


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


def upstream(proxy: RunningProxy, worker: Worker, **keys: int) -> Target:
    return proxy.target(worker, upstream=True, **keys)


async def answers(proxy: RunningProxy, requests: int) -> dict[bytes, int]:
    """How often each worker answers."""
    client = await proxy.client("web")
    found: dict[bytes, int] = {}
    for _ in range(requests):
        name = await client.get()
        found[name] = found.get(name, 0) + 1
    return found


async def test_upstreams_come_and_go_and_the_others_keep_their_state(proxy: RunningProxy) -> None:
    a, b, c = [await proxy.worker(name) for name in "abc"]
    first, second = upstream(proxy, a), upstream(proxy, b)
    third = upstream(proxy, c, up=False)
    await proxy.start(proxy.service("web", first, second))
    pool = proxy.proxy.services.by_name["web"].pool
    pool.member(second.member).ejections = 5
    await proxy.reconfigure(proxy.service("web", second, third))
    await proxy.answer(messages.ROTATION, member=third.member, state="up")
    assert await answers(proxy, 6) == {b"b": 3, b"c": 3}
    assert pool.member(second.member).ejections == 5
    assert not pool.has(first.member)


async def test_a_weight_changes_at_once(proxy: RunningProxy) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    targets = upstream(proxy, a), upstream(proxy, b)
    await proxy.start(proxy.service("web", *targets))
    assert await answers(proxy, 8) == {b"a": 4, b"b": 4}
    heavy = targets[0].model_copy(update={"weight": 3})
    await proxy.reconfigure(proxy.service("web", heavy, targets[1]))
    assert await answers(proxy, 8) == {b"a": 6, b"b": 2}


async def test_of_workers_only_the_weight_is_changed(proxy: RunningProxy) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    targets = proxy.target(a), proxy.target(b)
    await proxy.start(proxy.service("web", *targets))
    unknown = proxy.target(await proxy.worker("c"))
    heavy = targets[0].model_copy(update={"weight": 3, "up": False, "joined": False})
    await proxy.reconfigure(proxy.service("web", heavy, unknown))
    assert await answers(proxy, 8) == {b"a": 6, b"b": 2}


async def test_the_last_upstream_serves_until_its_successor_has_passed_a_check(
    proxy: RunningProxy,
) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    before, after = upstream(proxy, a), upstream(proxy, b, up=False)
    await proxy.start(proxy.service("web", before))
    pool = proxy.proxy.services.by_name["web"].pool
    await proxy.reconfigure(proxy.service("web", after))
    assert await proxy.get("web") in (b"a", b"b")
    await until(lambda: not pool.has(before.member))
    assert await answers(proxy, 2) == {b"b": 2}


async def test_a_removed_upstream_finishes_and_is_cut_when_its_time_is_over(
    proxy: RunningProxy,
) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    removed, stays = upstream(proxy, a), upstream(proxy, b)
    times = Timeouts(stop=3.0)
    await proxy.start(proxy.service("web", removed, timeouts=times))
    busy, tunnel = await proxy.client("web"), await proxy.client("web")
    await tunnel.upgrade()
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: len(a.heads) == 2)
    await proxy.reconfigure(proxy.service("web", stays, timeouts=times))
    a.go_on.set()
    assert await busy.answer() == b"a"
    assert await busy.get() == b"b"
    with pytest.raises(ConnectionResetError):
        await tunnel.ends()


async def test_another_address_under_the_same_number_is_another_server(
    proxy: RunningProxy,
) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    before = upstream(proxy, a)
    await proxy.start(proxy.service("web", before))
    assert await proxy.get("web") == b"a"
    moved = before.model_copy(update={"address": f"127.0.0.1:{b.port}"})
    await proxy.reconfigure(proxy.service("web", moved))
    assert await proxy.get("web") == b"b"


async def told(proxy: RunningProxy, service: str, *targets: Target) -> None:
    """Tell it of these upstreams, and wait until it has heard."""
    proxy.send_each(*parts_of_targets(targets), {"cmd": messages.UPSTREAMS, "service": service})
    await proxy.stats()


async def test_upstreams_change_without_another_configuration(proxy: RunningProxy) -> None:
    a, b = [await proxy.worker(name) for name in "ab"]
    first = upstream(proxy, a)
    await proxy.start(proxy.service("web", first))
    service = proxy.proxy.services.by_name["web"]
    second = upstream(proxy, b, up=False).model_copy(update={"name": "b.internal:80"})
    await told(proxy, "web", second)
    await proxy.answer(messages.ROTATION, member=second.member, state="up")
    await until(lambda: not service.pool.has(first.member))
    assert await answers(proxy, 2) == {b"b": 2}
    renamed = second.model_copy(update={"name": "c.internal:80", "weight": 3})
    await told(proxy, "web", renamed)
    (member,) = service.pool.members
    assert (member.name, member.weight) == ("c.internal:80", 3)
    assert service.pool.snapshot()[0]["name"] == "c.internal:80"


async def test_a_service_may_have_no_upstream_for_a_time(proxy: RunningProxy) -> None:
    await proxy.start(proxy.service("web"))
    client = await proxy.client("web")
    assert await client.get() == b"no worker available\n"
    only = upstream(proxy, await proxy.worker("a"), up=False)
    await told(proxy, "web", only)
    await proxy.answer(messages.ROTATION, member=only.member, state="up")
    assert await client.get() == b"a"


async def test_upstreams_that_are_none_change_nothing(
    proxy: RunningProxy, caplog: pytest.LogCaptureFixture
) -> None:
    first = upstream(proxy, await proxy.worker("a"))
    await proxy.start(proxy.service("web", first))
    await told(proxy, "web", first, first.model_copy(update={"member": 99, "address": "a.b:80"}))
    assert "the upstreams of web stay as they were" in caplog.text
    await told(proxy, "gone", first)
    proxy.send(messages.TARGETS, targets=[{"member": "x"}])
    proxy.send(messages.UPSTREAMS, service="web")
    assert await answers(proxy, 2) == {b"a": 2}
