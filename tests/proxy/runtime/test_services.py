"""Services come, change and go in a proxy that runs, and no connection ends that need not.

Covers `runtime/leaving`, `runtime/access_logs`, `runtime/process` and `runtime/stats`.
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.descriptors import descriptors
from tests.support.proxy.certificates import send_certificate, trusting
from tests.support.proxy.running_proxy import RunningProxy, lines, running_proxy, until

from penstock_proxy import messages
from penstock_proxy.config import Health, Limits, Target, Timeouts
from penstock_proxy.runtime.service import Service


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


async def gone(proxy: RunningProxy, name: str) -> None:
    """Wait until nothing of it is left."""
    await until(lambda: not list(proxy.proxy.services.named(name)))


def in_memory() -> int:
    """Services of this process that are not collected. What is frozen is not counted."""
    gc.collect()
    return sum(type(one) is Service for one in gc.get_objects())


# -- added


async def test_a_new_service_accepts_as_soon_as_it_has_a_listener(proxy: RunningProxy) -> None:
    first, second = await proxy.worker("first"), await proxy.worker("second")
    web = proxy.service("web", proxy.target(first))
    await proxy.start(web)
    assert await proxy.reconfigure(web, proxy.service("api", proxy.target(second))) == ""
    proxy.listen("api")
    assert await proxy.get("api") == b"second"
    assert await proxy.get("web") == b"first"
    assert set((await proxy.stats())["metrics"]["services"]) == {"web", "api"}


async def test_the_workers_of_a_new_service_are_checked(proxy: RunningProxy) -> None:
    worker = await proxy.worker("new")
    await proxy.start()
    target = proxy.target(worker, up=False)
    await proxy.reconfigure(proxy.service("web", target))
    rotation = await proxy.answer(messages.ROTATION, service="web")
    assert (rotation["member"], rotation["state"]) == (target.member, "up")


async def test_a_service_that_is_added_before_the_listeners_listen_accepts_with_the_others(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("a")
    await proxy.start()
    proxy.proxy.services.accepting = False
    await proxy.reconfigure(proxy.service("web", proxy.target(worker)))
    proxy.listen("web")
    await proxy.stats()
    assert not proxy.proxy.services.by_name["web"].listeners.is_accepting
    proxy.send(messages.ACCEPT)
    assert await proxy.get("web") == b"a"


# -- removed


async def test_a_removed_service_finishes_what_it_has_and_accepts_no_more(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("old")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    busy, idle = await proxy.client("web"), await proxy.client("web")
    assert await idle.get() == b"old"
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: len(worker.heads) == 2)
    proxy.stop_listening("web")
    await proxy.reconfigure()
    assert await idle.ends() == b""
    worker.go_on.set()
    assert await busy.answer() == b"old"
    assert b"\r\nConnection: close\r\n" in busy.head
    await gone(proxy, "web")
    with pytest.raises(ConnectionRefusedError):
        await proxy.client("web")


async def test_who_waits_in_the_queue_of_a_removed_listener_is_served(proxy: RunningProxy) -> None:
    worker = await proxy.worker("old")
    full = {"max_connections": 1, "limits": Limits(connections_per_client=0)}
    await proxy.start(proxy.service("web", proxy.target(worker), **full))
    first = await proxy.client("web")
    assert await first.get() == b"old"
    second = await proxy.client("web")
    second.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    proxy.stop_listening("web")
    await proxy.reconfigure()
    assert await second.answer() == b"old"


async def test_what_a_removed_service_has_not_finished_in_time_is_cut(proxy: RunningProxy) -> None:
    worker = await proxy.worker("old")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    tunnel = await proxy.client("web")
    await tunnel.upgrade()
    proxy.stop_listening("web")
    await proxy.reconfigure(web=0.3)
    assert (await proxy.answer(messages.CUT))["count"] == 1
    with pytest.raises(ConnectionResetError):
        await tunnel.ends()
    await gone(proxy, "web")


async def test_a_service_takes_the_name_of_one_that_is_leaving_and_their_counts_add_up(
    proxy: RunningProxy,
) -> None:
    old, new = await proxy.worker("old"), await proxy.worker("new")
    await proxy.start(proxy.service("web", proxy.target(old)))
    busy = await proxy.client("web")
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: old.heads)
    proxy.stop_listening("web")
    await proxy.reconfigure()
    await proxy.reconfigure(proxy.service("web", proxy.target(new)))
    proxy.listen("web")
    assert await proxy.get("web") == b"new"
    old.go_on.set()
    assert await busy.answer() == b"old"
    await until(lambda: not proxy.proxy.services.leaving)
    for _ in range(2):
        series = (await proxy.stats())["metrics"]["services"]["web"]
        assert series["penstock_requests_total"] == {"0 GET 200": 2}
        assert series["penstock_connections_total"] == {"": 2}


async def test_what_a_service_has_counted_is_told_once_more_when_it_is_gone(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("old")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    await proxy.get("web")
    proxy.stop_listening("web")
    await proxy.reconfigure()
    await gone(proxy, "web")
    last = (await proxy.stats())["metrics"]["services"]["web"]
    assert last["penstock_requests_total"] == {"0 GET 200": 1}
    assert last["penstock_connections_active"] == {"": 0}
    assert last["penstock_accepting"] == {"": 0}
    assert (await proxy.stats())["metrics"]["services"] == {}


async def test_messages_about_workers_of_a_leaving_service_still_reach_it(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("old")
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target))
    busy = await proxy.client("web")
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: worker.heads)
    await proxy.reconfigure()
    (leaving,) = proxy.proxy.services.leaving
    proxy.send(messages.DRAIN_WORKER, service="web", member=target.member, seq=5, finish=60.0)
    await proxy.answer(messages.WORKER_DRAINED, seq=5)
    assert leaving.service.pool.member(target.member).state.value == "draining"
    worker.go_on.set()
    assert await busy.answer() == b"old"


async def test_a_process_that_stops_waits_for_what_is_leaving(proxy: RunningProxy) -> None:
    worker = await proxy.worker("old")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    busy = await proxy.client("web")
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: worker.heads)
    await proxy.reconfigure(web=60.0)
    proxy.send(messages.DRAIN, finish={}, within=60.0)
    await proxy.stats()
    worker.go_on.set()
    assert await busy.answer() == b"old"


async def test_a_process_that_drains_is_in_the_way_of_no_change(proxy: RunningProxy) -> None:
    worker = await proxy.worker("old")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    busy, streaming = await proxy.client("web"), await proxy.client("web")
    for client in (busy, streaming):
        client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: len(worker.heads) == 2)
    proxy.send(messages.DRAIN, finish={}, within=60.0)
    assert await proxy.reconfigure(proxy.service("other", proxy.target(worker))) == ""
    worker.go_on.set()
    assert await busy.answer() == b"old"


KINDS: dict[str, dict[str, Any]] = {
    "http": {"health": Health(path="/")},
    "tcp": {"mode": "tcp"},
    "tls": {"tls": True},
    "send proxy": {"send_proxy": "v1", "limits": Limits(per_worker=5)},
    "handoff": {"scheme": "handoff"},
}


async def come_and_go(proxy: RunningProxy, kind: str, log: Path) -> None:
    """A service is added, serves (but under handoff) and is removed."""
    (stays,) = (one.wanted for one in proxy.proxy.services.by_name.values())
    target = stays.targets[0]
    if kind == "handoff":
        target = Target(member=target.member, slot=0, address="")
    service = proxy.service("comes", target, access_log=str(log), **KINDS[kind])
    assert await proxy.reconfigure(stays, service) == ""
    if kind == "tls":
        send_certificate(proxy, "comes")
    proxy.listen("comes")
    client = await proxy.client("comes", **(trusting() if kind == "tls" else {}))
    if kind != "handoff":
        assert await client.get() == b"w"
    client.close()
    assert in_memory() >= 2
    proxy.stop_listening("comes")
    assert await proxy.reconfigure(stays) == ""
    await gone(proxy, "comes")


@pytest.mark.parametrize(("kind", "rounds"), [(kind, 10) for kind in KINDS] + [("http", 100)])
async def test_services_that_came_and_went_leave_nothing(
    proxy: RunningProxy, tmp_path: Path, kind: str, rounds: int
) -> None:
    log = tmp_path / "log"
    await proxy.start(proxy.service("stays", proxy.target(await proxy.worker("w"))))
    before = in_memory()
    await come_and_go(proxy, kind, log)
    budget = proxy.proxy._fd_budget
    tasks, other, open_ = len(asyncio.all_tasks()), budget.other, descriptors()
    for _ in range(rounds):
        await come_and_go(proxy, kind, log)
    await until(lambda: budget.other <= other)
    assert (budget.clients, budget.pending, budget.listeners) == (0, 0, 1)
    await until(lambda: descriptors() <= open_)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: in_memory() == before)
    if kind != "handoff":
        await until(lambda: len(lines(str(log))) == rounds + 1)
    assert len(proxy.proxy.services._sharing.all) == 1


async def test_a_service_of_the_start_is_collected_when_it_is_gone(proxy: RunningProxy) -> None:
    await proxy.start(proxy.service("web", proxy.target(await proxy.worker("w"))))
    assert await proxy.get("web") == b"w"
    before = in_memory()
    proxy.stop_listening("web")
    await proxy.reconfigure()
    await gone(proxy, "web")
    await until(lambda: in_memory() == before - 1)


# -- listeners


async def test_a_service_moves_to_another_address_and_its_connections_live_on(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("w")
    web = proxy.service("web", proxy.target(worker))
    await proxy.start(web)
    kept, tunnel = await proxy.client("web"), await proxy.client("web")
    assert await kept.get() == b"w"
    await tunnel.upgrade()
    await proxy.reconfigure(web)
    before = proxy.ports["web"]
    proxy.listen("web")
    proxy.send(messages.UNLISTEN, service="web", keep=1)
    assert await proxy.get("web") == b"w"
    assert f"X-Forwarded-Port: {proxy.ports['web']}".encode() in worker.heads[-1]
    assert await kept.get() == b"w"
    assert f"X-Forwarded-Port: {before}".encode() in worker.heads[-1]
    assert await tunnel.echo(b"ping") == b"ping"
    proxy.ports["web"] = before
    with pytest.raises(ConnectionRefusedError):
        await proxy.client("web")
    assert proxy.proxy._fd_budget.listeners == 1


async def test_the_listeners_of_a_proxy_that_is_away_are_exchanged_too(
    proxy: RunningProxy,
) -> None:
    worker = await proxy.worker("w")
    await proxy.start(proxy.service("web", proxy.target(worker)))
    for _ in range(2):
        away = proxy._new_listener("web")
        # The second time it is the same socket: it is known.
        for _ in range(2):
            proxy.send(messages.COVER, away, service="web", proxy=1)
    # Its own one at this address.
    proxy.send(messages.LISTEN, away, service="web")
    assert await proxy.get("web") == b"w"
    assert proxy.proxy._fd_budget.listeners == 4
    proxy.send(messages.UNLISTEN, service="web", keep=1)
    await proxy.stats()
    assert proxy.proxy._fd_budget.listeners == 2
    assert await proxy.get("web") == b"w"
    proxy.send(messages.UNCOVER, proxy=1)
    await proxy.stats()
    assert proxy.proxy._fd_budget.listeners == 1


async def test_sockets_for_a_service_that_is_not_there_are_closed(proxy: RunningProxy) -> None:
    await proxy.start()
    before = descriptors()
    for cmd in (messages.LISTEN, messages.COVER):
        proxy.send(cmd, proxy._new_listener("web"), service="web", proxy=1)
        proxy.listeners.pop("web").close()
    proxy.send(messages.UNLISTEN, service="web", keep=1)
    await proxy.stats()
    await until(lambda: descriptors() == before)
    assert proxy.proxy._fd_budget.listeners == 0


# -- what cannot be carried out


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"access_log": "/no/such/directory/log"}, "No such file or directory"),
        ({"scheme": "handoff"}, "scheme cannot change"),
        ({"mode": "tcp"}, "mode cannot change"),
    ],
)
async def test_a_configuration_that_cannot_be_carried_out_changes_nothing(
    proxy: RunningProxy, tmp_path: Path, keys: Any, reason: str
) -> None:
    worker = await proxy.worker("w")
    target, other = proxy.target(worker), proxy.target(worker)
    web, gone_ = proxy.service("web", target), proxy.service("gone", target)
    await proxy.start(web, gone_)
    assert await proxy.get("web") == await proxy.get("gone") == b"w"
    before = descriptors()
    changed = proxy.service("web", target, timeouts=Timeouts(head=1.5), **keys)
    added = proxy.service("added", other, access_log=str(tmp_path / "log"))
    assert reason in await proxy.reconfigure(added, changed)
    services = proxy.proxy.services
    assert list(services.by_name) == ["web", "gone"]
    assert services.by_name["web"].timeouts.head != 1.5
    assert await proxy.get("gone") == b"w"
    await until(lambda: descriptors() <= before)
    # And what is good is carried out afterwards.
    assert await proxy.reconfigure(web) == ""


async def test_an_address_that_is_none_changes_nothing(proxy: RunningProxy) -> None:
    worker = await proxy.worker("w")
    before, after = (proxy.target(worker, upstream=True) for _ in range(2))
    await proxy.start(proxy.service("web", before))
    named = after.model_copy(update={"address": "no-such-name.invalid:80"})
    assert await proxy.reconfigure(proxy.service("web", after, named)) != ""
    pool = proxy.proxy.services.by_name["web"].pool
    assert [one.number for one in pool.members] == [before.member]


async def test_a_service_that_has_not_changed_is_left_alone(
    proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = proxy.service("web", proxy.target(await proxy.worker("w")))
    await proxy.start(web)
    monkeypatch.delattr(Service, "configure")
    assert await proxy.reconfigure(web.model_copy(update={"listeners": (99,)})) == ""
    assert await proxy.get("web") == b"w"


async def test_a_message_that_is_no_configuration_is_answered(proxy: RunningProxy) -> None:
    await proxy.start()
    proxy.send(messages.SERVICE, service={"name": "web"})
    proxy.send(messages.RECONFIGURE, seq=9, finish={})
    assert "listeners" in (await proxy.answer(messages.RECONFIGURED, seq=9))["error"]


async def test_too_few_descriptors_for_new_logs_change_nothing(
    proxy: RunningProxy, tmp_path: Path
) -> None:
    worker = await proxy.worker("w")
    web = proxy.service("web", proxy.target(worker))
    await proxy.start(web)
    budget = proxy.proxy._fd_budget
    limit, other = budget.limit, budget.other
    budget.limit = 10
    log = proxy.service("web", *web.targets, access_log=str(tmp_path / "log"))
    assert "descriptors are needed" in await proxy.reconfigure(log)
    budget.limit = limit
    await until(lambda: budget.other == other)
    assert await proxy.get("web") == b"w"


# -- access logs


async def test_what_is_in_flight_is_logged_once_whatever_happens_to_the_log(
    proxy: RunningProxy, tmp_path: Path
) -> None:
    worker = await proxy.worker("w")
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target, access_log=old))
    assert await proxy.get("web", "/first") == b"w"
    busy = await proxy.client("web")
    busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: len(worker.heads) == 2)
    await proxy.reconfigure(proxy.service("web", target, access_log=new))
    worker.go_on.set()
    assert await busy.answer() == b"w"
    await until(lambda: os.path.getsize(new) > 0)  # noqa: PTH202
    await until(lambda: len(lines(old)) == 1)
    assert [one["target"] for one in lines(old)] == ["/first"]
    assert [one["target"] for one in lines(new)] == ["/wait"]
    # Off, and then in another format in the same file.
    await proxy.reconfigure(proxy.service("web", target, access_log="off"))
    assert await proxy.get("web", "/unseen") == b"w"
    combined = {"access_log": old, "access_log_format": "combined"}
    await proxy.reconfigure(proxy.service("web", target, **combined))
    assert await proxy.get("web", "/last") == b"w"
    text = Path(old).read_text
    await until(lambda: '"GET /last HTTP/1.1" 200 1' in text())
    assert "/unseen" not in text()


async def test_a_changed_log_is_still_opened_anew_on_request(
    proxy: RunningProxy, tmp_path: Path
) -> None:
    worker, log = await proxy.worker("w"), tmp_path / "log"
    target = proxy.target(worker)
    await proxy.start(proxy.service("web", target))
    await proxy.reconfigure(proxy.service("web", target, access_log=str(log)))
    assert await proxy.get("web") == b"w"
    await until(lambda: log.exists() and log.stat().st_size)
    log.rename(tmp_path / "log.1")
    proxy.send(messages.REOPEN)
    await until(log.exists)
    assert await proxy.get("web") == b"w"
    await until(lambda: log.stat().st_size)


async def test_lines_that_a_log_before_has_dropped_stay_counted(
    proxy: RunningProxy, tmp_path: Path
) -> None:
    target = proxy.target(await proxy.worker("w"))
    await proxy.start(proxy.service("web", target, access_log=str(tmp_path / "a")))
    service = proxy.proxy.services.by_name["web"]
    assert service.error_log.access_log is not None
    service.error_log.access_log._log_writer._dropped = 3
    await proxy.reconfigure(proxy.service("web", target, access_log=str(tmp_path / "b")))

    await until(lambda: service.error_log.dropped == 3)
    series = (await proxy.stats())["metrics"]["services"]["web"]
    assert series["penstock_access_log_lines_dropped_total"] == {"": 3}
