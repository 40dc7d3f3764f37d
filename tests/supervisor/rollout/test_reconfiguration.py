"""A run changes while it serves: nothing that need not end ends, and what cannot be is refused.

Proxies and workers are real processes.

Covers `children/live_settings`, `rollout/preparation` and `rollout/proxy_updates`.
Covers `rollout/new_addresses`.
"""

import asyncio
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.support.descriptors import descriptors
from tests.support.live.many_clients import SCHEMES, once
from tests.support.supervisor.changing_run import (
    WAIT_S,
    ChangingRun,
    Stream,
    config,
    running,
    service,
    until,
)
from tests.support.supervisor.name_server import name_server

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import ReloadRefused
from penstock_supervisor.names import lookup, name_servers
from penstock_supervisor.rollout import preparation, reconfiguration

PROXIED = ("ports", "handoff")


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Load:
    """Requests without a pause, each on a connection of its own, and those that failed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.answered = 0
        self.failed: list[str] = []
        self._stop = False
        test = asyncio.current_task()
        assert test is not None
        self._test = test
        self._tasks = [asyncio.ensure_future(self._run()) for _ in range(4)]

    async def _run(self) -> None:
        while not self._stop and not self._has_ended():
            answer = await once(self.address)
            self.answered += 1
            if not answer.startswith("web"):
                self.failed.append(answer)

    def _has_ended(self) -> bool:
        """The test that made it has ended, well or not."""
        return self._test.done()

    async def end(self, *, lossy: bool = False) -> None:
        """`lossy`: a socket was closed on which clients may have waited."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        assert self.answered
        assert lossy or not self.failed


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_change_of_settings_touches_no_worker_and_no_stream(
    tmp_path: Path, scheme: str
) -> None:
    first = service(scheme=scheme)
    async with running(tmp_path, config(first)) as run:
        pids, load = run.pids(), Load(run.address())
        stream = await Stream.open(run.address())
        for number in range(3):
            await run.change(
                config(
                    service(
                        scheme=scheme, health={"interval": f"{number + 1}s"},
                        timeouts={"stop": f"{number + 5}s", "start": "77s"},
                        restart={"max_restarts": 7},
                    )
                )
            )  # fmt: skip
            assert await stream.goes_on()
        assert run.pids() == pids
        worker = run.worker(("web", 0))
        assert (worker.stop_s, worker.plan.start_s, worker.plan.restart.max_restarts) == (7, 77, 7)
        stream.close()
        await load.end()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_changed_program_comes_in_without_a_lost_request(
    tmp_path: Path, scheme: str
) -> None:
    async with running(tmp_path, config(service(scheme=scheme))) as run:
        pids, load = run.pids(), Load(run.address())
        await run.change(config(service(scheme=scheme, env={"COLOUR": "green"})))
        await load.end()
        assert not pids & run.pids()
        assert "green" in await once(run.address())


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_workers_are_added_and_removed(tmp_path: Path, scheme: str) -> None:
    async with running(tmp_path, config(service(scheme=scheme, workers=1))) as run:
        pids, load = run.pids(), Load(run.address())
        await run.change(config(service(scheme=scheme, workers=4)))
        assert len(run.pids()) == 4
        assert pids < run.pids()
        await run.change(config(service(scheme=scheme, workers=1)))
        await load.end(lossy=scheme == "reuseport")
        assert run.pids() == pids


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_service_comes_and_goes_and_leaves_nothing(tmp_path: Path, scheme: str) -> None:
    web, more = service(scheme="ports"), service("more", scheme=scheme, workers=1)
    async with running(tmp_path, config(web)) as run:
        await run.change(config(web, more))
        await run.change(config(web))
        before, pids, load = descriptors(), run.pids(), Load(run.address())
        stream = await Stream.open(run.address())
        for _ in range(2):
            await run.change(config(web, more))
            address = run.address("more")
            await until(lambda: "more" in run.resources.open_services())
            assert (await once(address)).startswith("more")
            assert run.supervisor.listening["more"] == f"{address[0]}:{address[1]}"
            await run.change(config(web))
            await until_refused(address)
            assert await stream.goes_on()
        stream.close()
        await load.end()
        assert run.pids() == pids
        assert set(run.resources.services) == set(run.supervisor.listening) == {"web"}
        assert set(run.supervisor._replacements._queue._services) <= {"web"}
        assert {name for name, _ in run.supervisor._rotation._members} == {"web"}
        await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_an_address_changes_and_streams_from_the_old_one_live_on(
    tmp_path: Path, scheme: str
) -> None:
    async with running(tmp_path, config(service(scheme=scheme))) as run:
        old = run.address()
        load, stream = Load(old), await Stream.open(old)
        changed = service(scheme=scheme, listen=free_address())
        prepared = await run.begin(config(changed))
        assert (await once(run.address())).startswith("web")
        if scheme in PROXIED:
            assert (await once(old)).startswith("web"), "both are served meanwhile"
            await load.end()
        await run.end(prepared)
        assert run.address() != old
        await until_refused(old)
        assert (await once(run.address())).startswith("web")
        if scheme == "ports":
            assert await stream.goes_on(), "its worker knows nothing of the address"
        stream.close()
        load._stop = True


@pytest.mark.parametrize("scheme", PROXIED)
async def test_an_address_is_handed_to_another_service_and_never_closed(
    tmp_path: Path, scheme: str
) -> None:
    where = free_address()
    old, new = service("old", listen=where, scheme=scheme), service(listen=where, scheme=scheme)
    async with running(tmp_path, config(old)) as run:
        answers: set[str] = set()
        done = False

        async def ask() -> None:
            while not done:
                answers.add((await once(run.address("old" if "old" in run.resources.listeners
                                                    else "web"))).split()[0])  # fmt: skip

        asking = asyncio.ensure_future(ask())
        await run.change(config(new))
        done = True
        await asking
        assert answers <= {"old", "web"}
        assert (await once(run.address())).startswith("web")


@pytest.mark.parametrize("proxies", [1, 2])
async def test_two_services_exchange_their_addresses(tmp_path: Path, proxies: int) -> None:
    a, b = free_address(), free_address()
    async with running(
        tmp_path, config(service(listen=a), service("more", listen=b), proxies=proxies)
    ) as run:
        await run.change(config(service(listen=b), service("more", listen=a), proxies=proxies))
        for name in ("web", "more"):
            for _ in range(8):
                await until_answers(run.address(name), name)
        assert f"{run.address('more')[0]}:{run.address('more')[1]}" == a


async def until_refused(address: tuple[str, int]) -> None:
    """A proxy closes its listener a moment after it was told to."""
    async with asyncio.timeout(30):
        while not (await once(address)).startswith("connect:"):  # noqa: ASYNC110 — it has to ask
            await asyncio.sleep(0.02)


async def until_answers(address: tuple[str, int], name: str) -> None:
    async with asyncio.timeout(30):
        while not (await once(address)).startswith(name):  # noqa: ASYNC110 — it has to ask
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_what_was_applied_can_be_taken_back(tmp_path: Path, scheme: str) -> None:
    web = service(scheme=scheme)
    async with running(tmp_path, config(web)) as run:
        old, pids, load = run.address(), run.pids(), Load(run.address())
        before = descriptors()
        changed = service(
            scheme=scheme, listen=free_address(), timeouts={"stop": "3s"}, health={"rise": 5}
        )
        prepared = await run.reconfiguration.prepare(
            config(changed, service("more", scheme=scheme), proxies=2)
        )
        await run.reconfiguration.apply(prepared)
        new = run.address()
        await run.reconfiguration.revert(prepared)
        await until(lambda: len(run.proxies()) <= 1)
        await load.end()
        assert run.address() == old
        assert run.pids() == pids
        assert run.worker(("web", 0)).stop_s == 10
        await until_refused(new)
        assert set(run.resources.services) == {"web"}
        await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_proxies_come_and_go_without_a_lost_request(tmp_path: Path, scheme: str) -> None:
    async with running(tmp_path, config(service(scheme=scheme))) as run:
        load = Load(run.address())
        for number in (3, 1, 2):
            await run.change(config(service(scheme=scheme), proxies=number))
            if scheme in PROXIED:
                await until(lambda number=number: run.proxies() == [*range(number)])  # type: ignore[misc]
                await until(lambda number=number: run.covered.isdisjoint(range(number)))  # type: ignore[misc]
            for _ in range(50):
                assert (await once(run.address())).startswith("web")
        await load.end()
        assert run.proxies() == ([0, 1] if scheme in PROXIED else [])


@pytest.mark.parametrize("scheme", PROXIED)
async def test_the_first_service_with_a_proxy_starts_one_and_the_last_ends_it(
    tmp_path: Path, scheme: str
) -> None:
    own, web = service("own", scheme="shared"), service(scheme=scheme, workers=1)
    other = service("other", scheme=scheme, workers=1)
    async with running(tmp_path, config(own)) as run:
        assert run.proxies() == []
        before = descriptors()
        for proxied in (web, other, web):
            await run.change(config(own, proxied))
            await until_answers(run.address(proxied.name), proxied.name)
            await run.change(config(own))
            await until(lambda: run.proxies() == [])
        assert (await once(run.address("own"))).startswith("own")
        await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("scheme", PROXIED)
async def test_a_smaller_number_of_proxies_can_be_taken_back(tmp_path: Path, scheme: str) -> None:
    async with running(tmp_path, config(service(scheme=scheme), proxies=2)) as run:
        load = Load(run.address())
        prepared = await run.reconfiguration.prepare(config(service(scheme=scheme)))
        await run.reconfiguration.apply(prepared)
        await run.reconfiguration.revert(prepared)
        await until(lambda: run.proxies() == [0, 1] and not run.covered)
        await load.end()
        assert {(await once(run.address())).split()[0] for _ in range(8)} == {"web"}


async def test_a_proxy_that_drains_is_in_the_way_of_no_change(tmp_path: Path) -> None:
    async with running(tmp_path, config(service(), proxies=2)) as run:
        old = run.address()
        # Enough for the kernel to give each proxy one.
        streams = [await Stream.open(old) for _ in range(16)]
        await run.change(config(service()))
        changed = service(listen=free_address(), health={"rise": 3})
        await run.change(config(changed))
        assert run.proxies() == [0, 1], "it still drains"
        await until_refused(old)
        await until_answers(run.address(), "web")
        for stream in streams:
            stream.close()


async def test_a_proxy_that_drains_and_is_needed_again_is_waited_for_by_nobody(
    tmp_path: Path,
) -> None:
    # Under handoff a proxy has nothing to finish: the connections are with the workers.
    slow = service(timeouts={"stop": "1h"})
    async with running(tmp_path, config(slow, proxies=2)) as run:
        streams = [await Stream.open(run.address()) for _ in range(16)]
        await run.change(config(slow))
        assert run.proxies() == [0, 1], "it drains"
        load = Load(run.address())
        described = run.versions.describe(config(slow, proxies=2), ())
        assert "proxy/1 still finishes what it has; the next one starts after it" in described
        assert not [one for one in run.versions.describe(config(slow), ()) if "proxy/1" in one]
        async with asyncio.timeout(WAIT_S):
            await run.change(config(slow, proxies=2))
        before = {proxy.pid for proxy in run.supervisor._slots.proxies}
        for stream in streams:
            assert await stream.goes_on()
            stream.close()
        await until(lambda: run.proxies() == [0, 1] and not run.covered)
        assert len(before & {proxy.pid for proxy in run.supervisor._slots.proxies}) == 1
        await load.end()


@pytest.mark.parametrize("scheme", PROXIED)
async def test_an_address_that_is_given_up_is_closed_also_of_proxies_that_are_gone(
    tmp_path: Path, scheme: str
) -> None:
    async with running(tmp_path, config(service(scheme=scheme), proxies=3)) as run:
        await run.change(config(service(scheme=scheme)))
        await until(lambda: run.proxies() == [0])
        old = run.address()
        await run.change(config(service(scheme=scheme, listen=free_address())))
        await until_refused(old)
        for _ in range(20):
            assert (await once(old)).startswith("connect:")
        await until_answers(run.address(), "web")


async def test_upstreams_change_and_a_stream_of_one_that_stays_lives_on(tmp_path: Path) -> None:
    behind = [service(f"b{number}", workers=1) for number in range(3)]
    async with running(tmp_path, config(*behind)) as run:
        addresses = [f"127.0.0.1:{run.address(one.name)[1]}" for one in behind]

        def front(*upstreams: str) -> Config:
            return config(*behind, service("front", upstreams=upstreams))

        await run.change(front(addresses[0]))
        await until_answers(run.address("front"), "b0")
        stream = await Stream.open(run.address("front"))
        await run.change(front(addresses[1], addresses[0]))
        await until_answers(run.address("front"), "b1")
        await until_answers(run.address("front"), "b0")
        await run.change(front(addresses[2], addresses[0]))
        await until_answers(run.address("front"), "b2")
        assert await stream.goes_on()
        seen = {(await once(run.address("front"))).split()[0] for _ in range(20)}
        assert seen == {"b0", "b2"}
        stream.close()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"directory": "/nowhere/at/all"}, r'service\.web\.directory: "/nowhere/at/all": no such'),
    ({"tls": {"cert": "/nowhere.pem", "key": "/nowhere.key"}}, r"service\.web\.tls\.cert: .*"),
]


@pytest.mark.parametrize(("keys", "problem"), REFUSED)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, keys: dict[str, Any], problem: str
) -> None:
    web = service()
    async with running(tmp_path, config(web)) as run:
        before, fds = run.resources.revision, descriptors()
        with pytest.raises(ReloadRefused, match=problem):
            await run.reconfiguration.prepare(config(service(**keys), service("more")))
        assert run.resources.revision is before
        assert descriptors() == fds
        assert (await once(run.address())).startswith("web")


async def test_a_disk_that_does_not_answer_is_a_refusal_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    async with running(tmp_path, config(service())) as run:
        before, fds = run.resources.revision, descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "READ_S", 0.01)
            patch.setattr(run.resources.directories, "resolve", lambda _: answers.wait(60))
            with pytest.raises(ReloadRefused, match=r"directory: cannot be read: no answer within"):
                await run.reconfiguration.prepare(config(service(), service("more")))
        with monkeypatch.context() as patch:
            patch.setattr(reconfiguration, "READ_S", 0.01)
            patch.setattr(run.resources, "hand_over_logs", lambda _: answers.wait(60))
            prepared = await run.reconfiguration.prepare(config(service(), service("more")))
            with pytest.raises(ReloadRefused, match=r"access_log: .*no answer within"):
                await run.reconfiguration.apply(prepared)
        answers.set()
        assert run.resources.revision is before
        assert descriptors() == fds
        assert (await once(run.address())).startswith("web")


@pytest.mark.parametrize("scheme", ["ports", "reuseport"])
async def test_all_problems_are_told_at_once(tmp_path: Path, scheme: str) -> None:
    async with running(tmp_path, config(service(scheme=scheme))) as run:
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            taken = f"127.0.0.1:{stranger.getsockname()[1]}"
            wanted = config(
                service(scheme=scheme, listen=taken, directory="/nowhere"),
                service("other", scheme="shared", listen=run.supervisor.listening["web"]),
            )
            with pytest.raises(ReloadRefused) as refused:
                await run.reconfiguration.prepare(wanted)
        text = "\n".join(refused.value.problems)
        assert len(refused.value.problems) == 3, text
        assert "address already in use" in text
        assert "is the address of web now" in text
        assert "no such directory" in text


async def test_what_a_dry_run_looks_at_is_left_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, config(service())) as run:
        before, fds, where = run.resources.revision, descriptors(), free_address()
        wanted = config(service(), service("more", listen=where), proxies=2)
        assert await run.reconfiguration.check(wanted)
        assert (run.resources.revision, descriptors()) == (before, fds)
        taken = socket.create_server(("127.0.0.1", int(where.rpartition(":")[2])))
        with taken, pytest.raises(ReloadRefused, match="address already in use"):
            await run.reconfiguration.check(wanted)
        prepared = await run.begin(wanted)
        assert not await run.reconfiguration.check(wanted), "nobody can say now"
        await run.end(prepared)
        assert await run.reconfiguration.check(wanted)


async def test_nobody_can_say_what_can_be_had_before_a_change_that_was_left_is_reverted(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, config(service())) as run:
        wanted = config(service(health={"rise": 3}))
        prepared = await run.begin(wanted)
        await run.reconfiguration.leave(prepared)
        with pytest.raises(ReloadRefused, match="no such directory"):
            await run.reconfiguration.prepare(config(service(directory="/nowhere")))
        assert not await run.reconfiguration.check(wanted)
        await run.reconfiguration.revert(prepared)
        assert await run.reconfiguration.check(wanted)


async def test_a_name_server_that_is_away_is_a_refusal_that_names_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_servers, "ANSWER_S", 0.1)
    front = service("front", upstreams=("db-1.example:80", "db-2.example:80"))
    with name_server() as server:
        server.is_silent = True
        async with running(tmp_path, config(service())) as run:
            new = config(service(), front, name_servers=(server.address,))
            with pytest.raises(ReloadRefused, match=r"front\.upstreams: db-1\S+, db-2\S+: no name"):
                await run.reconfiguration.prepare(new)


async def test_a_dry_run_whose_names_are_not_answered_holds_up_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((name_servers, "ANSWER_S"), (lookup, "LOOKUP_S")):
        monkeypatch.setattr(module, name, 3600.0)
    front = service("front", upstreams=("db.example:80",))
    with name_server() as server:
        server.is_silent = True
        async with running(tmp_path, config(service())) as run:
            before, fds = run.resources.revision, descriptors()
            new = config(service(), front, name_servers=(server.address,))
            checks = [asyncio.ensure_future(run.reconfiguration.check(new)) for _ in range(2)]
            await until(lambda: bool(server.asked))
            assert run.resources.revision == before
            await run.change(config(service(health={"rise": 3})))
            async with asyncio.timeout(WAIT_S):
                assert not any(await asyncio.gather(*checks)), "nobody can say"
            await until(lambda: descriptors() <= fds)


async def test_a_change_that_a_proxy_cannot_follow_is_taken_back(tmp_path: Path) -> None:
    async with running(tmp_path, config(service())) as run:
        pids = run.pids()
        prepared = await run.reconfiguration.prepare(
            config(service(access_log="/nowhere/access.log"))
        )
        with pytest.raises(ReloadRefused, match=r"proxy/0: .*nowhere"):
            await run.reconfiguration.apply(prepared)
        await run.reconfiguration.revert(prepared)
        assert run.resources.services["web"].access_log == "off"
        assert (await once(run.address())).startswith("web")
        assert run.pids() == pids


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


async def asked_over_tls(address: tuple[str, int], authority: trustme.CA) -> str:
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    reader, writer = await asyncio.open_connection(
        *address, ssl=context, server_hostname="a.example"
    )
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode()


async def test_tls_begins_changes_and_ends_at_a_reload(tmp_path: Path) -> None:
    tables, authorities = [], []
    for number in range(2):
        authority = trustme.CA()
        made = authority.issue_cert("a.example")
        cert, key = tmp_path / f"{number}.pem", tmp_path / f"{number}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        tables.append({"cert": str(cert), "key": str(key)})
        authorities.append(authority)
    async with running(tmp_path, config(service(workers=1))) as run:
        pids, address = run.pids(), run.address()
        stream = await Stream.open(address)
        for table, authority in zip(tables, authorities, strict=True):
            await run.change(config(service(workers=1, tls=table)))
            assert (await asked_over_tls(address, authority)).startswith("web")
            assert not (await once(address)).startswith("web")
        with pytest.raises(ssl.SSLError):
            await asked_over_tls(address, authorities[0])
        await run.change(config(service(workers=1)))
        assert (await once(address)).startswith("web")
        assert run.pids() == pids
        assert run.supervisor._proxies.certificate_reload.views() == {}
        stream.close()


@pytest.mark.parametrize("scheme", PROXIED)
async def test_a_proxy_that_ends_in_the_middle_comes_back_with_what_is_in_force(
    tmp_path: Path, scheme: str
) -> None:
    async with running(tmp_path, config(service(scheme=scheme))) as run:
        old = run.address()
        changed = service(scheme=scheme, listen=free_address(), timeouts={"stop": "4s"})
        more = service("more", scheme=scheme, workers=1)
        prepared = await run.reconfiguration.prepare(config(changed, more))
        kill_proxies(run)
        await run.reconfiguration.apply(prepared)
        kill_proxies(run)
        await until_answers(run.address(), "web")
        await until_answers(old, "web")
        await run.bring_workers(prepared)
        kill_proxies(run)
        await run.end(prepared)
        await until_refused(old)
        await until_answers(run.address(), "web")
        await until_answers(run.address("more"), "more")
        assert [proxy.state for proxy in run.supervisor._slots.proxies] == [State.UP]
        assert run.resources.services["web"].timeouts.stop == 4


def kill_proxies(run: ChangingRun) -> None:
    for proxy in run.supervisor._slots.proxies:
        proxy.signal(signal.SIGKILL)
