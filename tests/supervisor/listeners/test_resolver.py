"""Names of upstreams are resolved, and an unknown one is a clear error."""

import socket
import threading
from typing import Any

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Config, Service, Upstream
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.resolver import resolve, resolve_in_thread
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
