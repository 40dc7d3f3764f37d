"""Names of upstreams are resolved, and an unknown one is a clear error."""

import socket
import threading
from typing import Any

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor import blocking
from penstock_supervisor.config.model import Config, Service, Upstream
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners import resolver
from penstock_supervisor.listeners.resolver import resolve, resolve_in_thread, resolve_within
from penstock_supervisor.supervisor import Supervisor


def service(*addresses: str) -> Service:
    upstreams = tuple(Upstream(address=address) for address in addresses)
    return Service(name="web", listen="127.0.0.1:0", upstreams=upstreams)


def test_a_name_is_resolved_and_numeric_addresses_stay() -> None:
    found = resolve([service("localhost:81", "[::1]:82", "unix:/tmp/x")])

    assert found == {
        "web": [Address("127.0.0.1", 81), Address("::1", 82), Address(path="/tmp/x")],
    }


def test_a_service_without_upstreams_has_nothing_to_resolve() -> None:
    assert resolve([Service(name="web", listen="127.0.0.1:0", app="a:b")]) == {}


def test_an_unknown_name_is_one_clear_line() -> None:
    with pytest.raises(StartError, match=r"service\.web\.upstreams: a\.invalid:80: unknown host"):
        resolve([service("a.invalid:80")])


async def test_a_thread_has_the_same_result_and_the_same_error() -> None:
    assert await resolve_in_thread([service("[::1]:82")]) == {"web": [Address("::1", 82)]}
    with pytest.raises(StartError, match="unknown host"):
        await resolve_in_thread([service("a.invalid:80")])


async def test_names_are_looked_up_side_by_side_and_at_most_for_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, asked = threading.Event(), set()
    numeric = socket.getaddrinfo

    def one_answers(host: str, *rest: Any, **more: Any) -> Any:
        asked.add(host)
        if host.startswith("away"):
            answer.wait(60)
            raise socket.gaierror
        return numeric("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", one_answers)
    try:
        there = [
            service("here:1", "unix:/tmp/x"),
            Service(name="app", listen="127.0.0.1:0", app="a:b"),
        ]
        found = {"web": [Address("127.0.0.1", 1), Address(path="/tmp/x")]}
        assert await resolve_within(60.0, there) == found
        with pytest.raises(StartError) as refused:
            await resolve_within(0.1, [service("away-1:1", "here:2", "away-2:1", "away-1:1")])
    finally:
        answer.set()
    why = "no name server has answered within 0.1 s"
    assert str(refused.value) == f"service.web.upstreams: away-1:1, away-2:1: {why}"
    assert asked == {"here", "away-1", "away-2"}


async def test_more_names_than_there_may_be_threads_are_all_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [f"127.0.0.1:{port}" for port in range(1, 200)]
    assert len((await resolve_within(60.0, [service(*many)]))["web"]) == len(many)
    monkeypatch.setattr(blocking, "MOST", 0)
    with pytest.raises(StartError, match="upstreams: no name can be looked up: 0 earlier"):
        await resolve_within(60.0, [service("127.0.0.1:1")])


async def test_all_unknown_names_are_told_and_a_bug_is_not_called_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StartError, match=r"upstreams: a\.invalid:1, b\.invalid:1: unknown host"):
        await resolve_within(60.0, [service("a.invalid:1", "b.invalid:1", "127.0.0.1:1")])
    monkeypatch.setattr(resolver, "_address_of", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await resolve_within(60.0, [service("127.0.0.1:1")])


async def test_a_stop_is_heard_while_a_name_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = threading.Event()

    def never_answers(*_: object, **__: object) -> Any:
        answer.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", never_answers)
    config = Config(admin="", run_dir="", services=(service("db.example:80"),))
    supervisor = Supervisor(config, environment={})
    supervisor.stop()
    try:
        assert await supervisor.run() == 0
    finally:
        answer.set()
