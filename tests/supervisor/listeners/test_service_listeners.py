"""Sockets by scheme: a shared one, or one for each slot; one that is not served is closed."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.service_listeners import ServiceListeners

CLIENTS = 64


def service(scheme: str, **keys: Any) -> Service:
    return Service.model_validate(
        {
            "name": "web",
            "listen": "127.0.0.1:0",
            "app": "a:b",
            "workers": 3,
            "scheme": scheme,
            **keys,
        }
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_listeners(stack: ExitStack, scheme: str, **keys: Any) -> ServiceListeners:
    proxies = keys.pop("proxies", 1)
    listeners = stack.enter_context(closing(ServiceListeners(service(scheme, **keys), proxies)))
    listeners.listen()
    return listeners


def accepts(stack: ExitStack, fds: tuple[int, ...]) -> int:
    """How many wait there; takes them all."""
    sock = stack.enter_context(socket.socket(fileno=os.dup(fds[0])))
    taken = 0
    while select.select([sock], [], [], 0)[0]:
        sock.accept()[0].close()
        taken += 1
    return taken


def connect(stack: ExitStack, listeners: ServiceListeners, count: int = CLIENTS) -> None:
    where = (listeners.address.host, listeners.address.port)
    for _ in range(count):
        stack.enter_context(socket.create_connection(where, timeout=10))


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_with_a_proxy_only_the_proxy_gets_the_socket(stack: ExitStack, scheme: str) -> None:
    listeners = open_listeners(stack, scheme)
    assert len(listeners.proxy_fds(0)) == 1
    assert listeners.worker_fds(0) == ()


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_each_of_several_proxies_has_a_socket_and_a_share(stack: ExitStack, scheme: str) -> None:
    listeners = open_listeners(stack, scheme, proxies=3)
    connect(stack, listeners)
    shares = [accepts(stack, listeners.proxy_fds(slot)) for slot in range(3)]
    assert sum(shares) == CLIENTS
    assert all(shares)
    assert [view.slot for view in listeners.views()] == [0, 1, 2]
    assert listeners.proxy_fds(1) == listeners.proxy_fds(1), "the next one gets the same"


def test_a_socket_of_a_proxy_is_not_closed_for_a_worker(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "ports", proxies=2)
    assert not listeners.close_slot(0)
    assert [view.slot for view in listeners.views()] == [0, 1]


def test_a_unix_socket_is_shared_by_all_proxies(stack: ExitStack, tmp_path: Path) -> None:
    listeners = open_listeners(stack, "ports", proxies=2, listen=f"unix:{tmp_path}/web")
    assert listeners.proxy_fds(0) == listeners.proxy_fds(1)
    assert listeners.proxy_socket(0) is None
    assert [view.slot for view in listeners.views()] == [None]


def test_only_a_socket_that_belongs_to_one_proxy_can_be_taken_over(stack: ExitStack) -> None:
    assert open_listeners(stack, "ports").proxy_socket(0) is None
    assert open_listeners(stack, "reuseport").proxy_socket(0) is None
    listeners = open_listeners(stack, "handoff", proxies=2)
    sock = listeners.proxy_socket(1)
    assert sock is not None
    assert (sock.fileno(),) == listeners.proxy_fds(1)


@pytest.mark.parametrize("proxies", [1, 2])
def test_a_port_that_is_taken_is_refused_with_any_number_of_proxies(
    stack: ExitStack, proxies: int
) -> None:
    first = open_listeners(stack, "ports", proxies=2)
    with pytest.raises(StartError, match="already in use"):
        ServiceListeners(service("ports", listen=str(first.address)), proxies)


def test_a_shared_socket_is_the_same_for_every_worker(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "shared")
    assert listeners.proxy_fds(0) == ()
    assert listeners.worker_fds(0) == listeners.worker_fds(2)
    assert [view.slot for view in listeners.views()] == [None]


def test_each_worker_of_a_reused_port_has_a_socket_and_a_share(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "reuseport")
    connect(stack, listeners)
    shares = [accepts(stack, listeners.worker_fds(slot)) for slot in range(3)]
    assert sum(shares) == CLIENTS
    assert all(shares)
    assert len({view.inode for view in listeners.views()}) == 3


def test_a_slot_keeps_its_socket_and_its_queue(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "reuseport")
    before = listeners.worker_fds(1)
    assert (listeners.open_slot(1).fileno(),) == before
    assert listeners.worker_fds(1) == before


def test_a_closed_socket_gets_no_connections_even_if_a_stuck_worker_has_a_copy(
    stack: ExitStack,
) -> None:
    listeners = open_listeners(stack, "reuseport")
    stuck = stack.enter_context(socket.socket(fileno=os.dup(listeners.worker_fds(1)[0])))
    connect(stack, listeners)
    assert listeners.close_slot(1)
    waited = listeners.dropped
    connect(stack, listeners)
    left = sum(accepts(stack, listeners.worker_fds(slot)) for slot in (0, 2))
    assert waited > 0
    assert left + waited == 2 * CLIENTS
    with pytest.raises(OSError, match="Invalid argument"):
        stuck.accept()


def test_a_closed_socket_is_reopened_for_a_command_and_listens(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "reuseport", app=None, command=["x"])
    listeners.close_slot(1)
    assert len(list(listeners.views())) == 2
    fds = listeners.worker_fds(1)
    connect(stack, listeners)
    assert accepts(stack, fds) > 0


def test_a_socket_that_is_reopened_for_an_app_gets_no_client_before_the_app_listens(
    stack: ExitStack,
) -> None:
    listeners = open_listeners(stack, "reuseport")
    listeners.close_slot(1)
    fds = listeners.worker_fds(1)
    connect(stack, listeners)
    assert sum(accepts(stack, listeners.worker_fds(slot)) for slot in (0, 2)) == CLIENTS
    assert listeners.close_slot(1), "nor does it have to listen to be closed again"
    fds = listeners.worker_fds(1)
    stack.enter_context(socket.socket(fileno=os.dup(fds[0]))).listen()
    connect(stack, listeners)
    assert accepts(stack, fds) > 0


def test_the_last_socket_stays_open(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "reuseport", workers=2)
    assert listeners.close_slot(0)
    assert not listeners.close_slot(1)
    assert not listeners.close_slot(0)


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_datagrams_have_sockets_too(stack: ExitStack, scheme: str) -> None:
    listeners = open_listeners(stack, scheme, mode="udp")
    sock = stack.enter_context(socket.socket(fileno=os.dup(listeners.worker_fds(0)[0])))
    assert sock.type == socket.SOCK_DGRAM
    assert {view.kind for view in listeners.views()} == {"udp"}


@pytest.mark.parametrize("mode", ["http", "udp"])
def test_two_runs_do_not_share_a_port_by_accident(stack: ExitStack, mode: str) -> None:
    first = open_listeners(stack, "reuseport", mode=mode)
    with pytest.raises(StartError, match="already in use"):
        ServiceListeners(service("reuseport", mode=mode, listen=str(first.address)))


def test_all_sockets_are_closed_at_the_end(stack: ExitStack) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for scheme in ("ports", "shared", "reuseport"):
        listeners = ServiceListeners(service(scheme))
        listeners.listen()
        listeners.close()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_proxy_that_comes_later_gets_clients_only_when_it_accepts(
    stack: ExitStack, scheme: str
) -> None:
    listeners = open_listeners(stack, scheme)
    connect(stack, listeners)
    listeners.open_for_proxies(2)
    assert listeners.proxy_socket(1) is None, "nobody can wait there"
    connect(stack, listeners)
    assert accepts(stack, listeners.proxy_fds(0)) == 2 * CLIENTS
    listeners.listen_for(1)
    connect(stack, listeners)
    shares = [accepts(stack, listeners.proxy_fds(slot)) for slot in range(2)]
    assert sum(shares) == CLIENTS
    assert all(shares)
    assert [one.fileno() for one in listeners.proxy_sockets(1)] == [*listeners.proxy_fds(1)]


def test_a_socket_that_has_listened_stays_when_its_proxy_is_not_needed(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "ports", proxies=2)
    listeners.open_for_proxies(1)
    opened = listeners.open_for_proxies(3)
    assert opened == (2,)
    listeners.close_silent(opened)
    assert [view.slot for view in listeners.views()] == [0, 1]
    assert listeners.proxy_sockets(2) == ()


def test_a_change_that_fails_closes_only_what_it_has_opened(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "ports", proxies=2)
    # Of a change that is in force, whose proxy has not started yet.
    assert listeners.open_for_proxies(3) == (2,)
    opened = listeners.open_for_proxies(4)
    listeners.close_silent(opened)
    assert [view.slot for view in listeners.views()] == [0, 1, 2]
    listeners.listen_for(2)
    assert listeners.proxy_socket(2) is not None


def test_more_proxies_need_no_more_of_a_unix_socket(stack: ExitStack, tmp_path: Path) -> None:
    listeners = open_listeners(stack, "ports", listen=f"unix:{tmp_path}/web")
    listeners.open_for_proxies(3)
    assert [view.slot for view in listeners.views()] == [None]
    assert listeners.proxy_fds(2) == listeners.proxy_fds(0)


def test_a_new_address_of_reused_ports_has_one_socket_until_workers_come(stack: ExitStack) -> None:
    listeners = stack.enter_context(closing(ServiceListeners(service("reuseport"), eager=False)))
    listeners.listen()
    with pytest.raises(ConnectionRefusedError):
        connect(stack, listeners, 1)
    assert [view.slot for view in listeners.views()] == [0]
    listeners.open_slot(1)
    connect(stack, listeners)
    assert accepts(stack, (listeners.open_slot(1).fileno(),)) == CLIENTS


def test_what_waits_on_a_slot_that_is_removed_is_left_to_its_worker(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "reuseport", workers=2)
    its_own = stack.enter_context(socket.socket(fileno=os.dup(listeners.worker_fds(1)[0])))
    connect(stack, listeners)
    listeners.release_slot(1)
    assert [view.slot for view in listeners.views()] == [0]
    waiting = accepts(stack, (its_own.fileno(),)) + accepts(stack, listeners.worker_fds(0))
    assert waiting == CLIENTS
    assert listeners.dropped == 0


def test_sockets_that_are_handed_over_stay_open(stack: ExitStack) -> None:
    listeners = open_listeners(stack, "ports", proxies=2)
    heir = listeners.handed_to(service("handoff", name="heir"))
    assert heir.proxy_fds(1) == listeners.proxy_fds(1)
    assert heir.sockaddr == listeners.sockaddr
    assert heir.service.name == "heir"
    opened = heir.open_for_proxies(3)
    assert [view.slot for view in listeners.views()] == [0, 1]
    heir.close_silent(opened)
