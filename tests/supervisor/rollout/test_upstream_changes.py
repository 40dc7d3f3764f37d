"""When a name stands for other addresses, members join and leave while everything runs.

The proxy is a real process, and so is the name server.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
from tests.support.proxy.running_proxy import Worker
from tests.support.supervisor.changing_run import (
    ChangingRun,
    config,
    running,
    service,
    until,
)
from tests.support.supervisor.name_server import NameServer, name_server

from penstock_supervisor.config.model import Config
from penstock_supervisor.names import schedule, watch

HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
"""Addresses of this machine, each with a server on the same port."""


class Servers:
    """One at each of the addresses, and the name server that says which there are."""

    def __init__(self, names: NameServer) -> None:
        self.names = names
        self.by_host = {host: Worker(host) for host in HOSTS}
        self.port = 0

    async def start(self) -> None:
        for host, worker in self.by_host.items():
            await worker.start(host, self.port)
            self.port = worker.port

    async def close(self) -> None:
        for worker in self.by_host.values():
            await worker.close()

    def config(self, *upstreams: str, **keys: Any) -> Config:
        front = service(upstreams=[one.format(port=self.port) for one in upstreams], **keys)
        return config(front, name_servers=(self.names.address,))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up ten times as often as at the most otherwise."""
    monkeypatch.setattr(schedule, "MIN_TTL_S", 0.1)
    monkeypatch.setattr(schedule, "MAX_TTL_S", 0.1)
    monkeypatch.setattr(schedule, "MAX_RETRY_S", 0.1)
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.05)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    with name_server() as names:
        servers = Servers(names)
        await servers.start()
        yield servers
        await servers.close()


class Client:
    """Requests without a pause over kept connections, and who has answered."""

    def __init__(self, run: ChangingRun) -> None:
        self.address = run.address()
        self.answers: list[str] = []
        self.failed: list[str] = []
        self._is_over = False
        self._tasks = [asyncio.ensure_future(self._run()) for _ in range(4)]

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection(*self.address)
        while not self._is_over:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if head.startswith(b"HTTP/1.1 200 "):
                self.answers.append(body.decode())
            else:
                self.failed.append(head.decode())
        writer.close()

    async def only(self, *hosts: str) -> None:
        """Wait until all of these answer, and nobody else."""

        def are_those() -> bool:
            self.answers = self.answers[-12:]
            return len(self.answers) == 12 and set(self.answers) == {*hosts}

        await until(are_those)

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def serving(tmp_path: Path, first: Config) -> AsyncIterator[tuple[ChangingRun, Client]]:
    async with running(tmp_path, first) as run:
        await until(lambda: "web" in run.supervisor._rotation.services_up())
        client = Client(run)
        try:
            yield run, client
        finally:
            await client.end()
        assert client.failed == []


async def test_an_address_that_changes_under_load_costs_no_request(
    tmp_path: Path, servers: Servers
) -> None:
    names = servers.names
    names.set("app.test", "A", HOSTS[0])
    async with serving(tmp_path, servers.config("app.test:{port}")) as (run, client):
        await client.only(HOSTS[0])
        for host in (HOSTS[1], HOSTS[2], HOSTS[0]):
            names.set("app.test", "A", host)
            await client.only(host)
            assert [one.slot for one in run.resources.upstreams.of("web")] == [0]
        await until(lambda: len(list(run.supervisor._rotation._views)) == 1)


async def test_members_join_and_leave_with_the_addresses_of_a_name(
    tmp_path: Path, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    names = servers.names
    names.set("app.test", "A", *HOSTS[:2])
    caplog.set_level("INFO")
    async with serving(tmp_path, servers.config("dns:app.test:{port}")) as (_, client):
        await client.only(*HOSTS[:2])
        names.set("app.test", "A", *HOSTS[1:])
        await client.only(*HOSTS[1:])
    text, port = f"web: dns:app.test:{servers.port}", servers.port
    assert f"{text}: {HOSTS[2]}:{port} joins" in caplog.messages
    assert f"{text}: {HOSTS[0]}:{port} leaves" in caplog.messages


async def test_a_name_server_that_fails_takes_nobody_away(tmp_path: Path, servers: Servers) -> None:
    names = servers.names
    names.set("app.test", "A", *HOSTS[:2])
    async with serving(tmp_path, servers.config("dns:app.test:{port}")) as (run, client):
        names.rcode = dns.rcode.SERVFAIL
        asked = names.asked.total()
        await until(lambda: names.asked.total() >= asked + 6)
        await client.only(*HOSTS[:2])
        (view,) = run.supervisor._snapshots._names.views()
        assert view.lookups["failed"] >= 2
        names.rcode = dns.rcode.NOERROR
        names.set("app.test", "A", HOSTS[2])
        await client.only(HOSTS[2])


async def test_a_service_has_the_weights_of_its_records(tmp_path: Path, servers: Servers) -> None:
    names, port = servers.names, servers.port
    for host, name in zip(HOSTS, "abc", strict=True):
        names.set(f"{name}.test", "A", host)
    records = (f"1 3 {port} a.test.", f"1 1 {port} b.test.", f"2 1 {port} c.test.")
    names.set("_http._tcp.test", "SRV", *records)
    async with serving(tmp_path, servers.config("dns+srv:_http._tcp.test")) as (run, client):
        await client.only(*HOSTS[:2])
        assert sorted(one.weight for one in run.resources.upstreams.of("web")) == [1, 3]
        client.answers.clear()
        await until(lambda: len(client.answers) > 400)
        share = client.answers.count(HOSTS[0]) / len(client.answers)
        assert share == pytest.approx(0.75, abs=0.05)
        names.set("_http._tcp.test", "SRV", f"1 1 {port} c.test.")
        await client.only(HOSTS[2])


async def test_a_name_without_addresses_gets_its_first_and_loses_its_last(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "HOLD_S", 0.1)
    names = servers.names
    async with running(tmp_path, servers.config("dns:app.test:{port}")) as run:
        rotation = run.supervisor._rotation
        assert rotation.services_up() == set()
        names.set("app.test", "A", HOSTS[0])
        await until(lambda: rotation.services_up() == {"web"})
        names.remove("app.test")
        await until(lambda: not run.resources.upstreams.of("web"))


async def test_a_reload_keeps_what_a_name_has_become_and_looks_new_ones_up(
    tmp_path: Path, servers: Servers
) -> None:
    names = servers.names
    names.set("app.test", "A", HOSTS[0])
    names.set("more.test", "A", HOSTS[2])
    async with serving(tmp_path, servers.config("dns:app.test:{port}")) as (run, client):
        names.set("app.test", "A", HOSTS[1])
        await client.only(HOSTS[1])
        (member,) = run.resources.upstreams.of("web")
        await run.change(servers.config("dns:app.test:{port} weight=2", balance="random"))
        assert run.resources.upstreams.of("web") == (member._replace(weight=2),)
        await run.change(servers.config("more.test:{port}", "dns:app.test:{port} weight=2"))
        await client.only(*HOSTS[1:])
        await run.change(servers.config("more.test:{port}"))
        await client.only(HOSTS[2])


async def test_a_check_asks_for_the_name(tmp_path: Path, servers: Servers) -> None:
    servers.names.set("app.test", "A", HOSTS[0])
    first = servers.config("app.test:{port}", health={"path": "/healthz", "interval": "0.1s"})
    async with serving(tmp_path, first):
        heads = servers.by_host[HOSTS[0]].heads
        await until(lambda: any(b" /healthz " in head for head in heads))
        (head, *_) = [head for head in heads if b" /healthz " in head]
        assert f"Host: app.test:{servers.port}\r\n".encode() in head
