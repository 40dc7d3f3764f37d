"""Every policy serves requests, and round robin gives exact turns, over real sockets."""

import re
import threading
from collections import Counter
from typing import TYPE_CHECKING

from tests.support.live.heads import OK, always, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire


def worker_of(body: bytes) -> str:
    match = re.match(rb"hello from (\w+/\d) ", body)
    assert match, body
    return match[1].decode()


def test_round_robin_is_exact_over_one_connection(demo: "Cluster") -> None:
    wire = demo.connect()
    turns = Counter(worker_of(wire.ask(request()).body) for _ in range(40))
    assert turns == {"web/0": 20, "web/1": 20}


def test_round_robin_is_exact_over_many_connections_at_once(demo: "Cluster") -> None:
    turns: Counter[str] = Counter()

    def client() -> None:
        for _ in range(5):
            wire = demo.connect()
            mine = [worker_of(wire.ask(request()).body) for _ in range(5)]
            turns.update(mine)
            wire.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == {"web/0": 100, "web/1": 100}


def test_round_robin_is_exact_by_weight(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[list[bytes]] = [[], [], []]
    workers = [origin(always(OK, mine)) for mine in seen]
    weights = ("", " weight=3", " weight=2")
    run = penstock(upstreams=[w.address + text for w, text in zip(workers, weights, strict=True)])
    wire = run.connect()
    for _ in range(60):
        assert wire.ask(request()).status == 200
    assert [len(mine) for mine in seen] == [10, 30, 20]


def test_every_policy_serves_requests(penstock: "Penstock", origin: "Worker") -> None:
    def named(name: bytes) -> "Callable[[Wire], None]":
        return always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

    upstreams = [origin(named(b"0")).address, origin(named(b"1")).address]
    policies = ("round_robin", "least_connections", "power_of_two", "client_hash", "random")
    run = penstock(
        services={
            policy: {"balance": policy, "upstreams": upstreams, "access_log": "off"}
            for policy in policies
        }
    )
    turns = {}
    for policy in policies:
        wire = run.connect(policy)
        turns[policy] = Counter(wire.ask(request()).body for _ in range(100))
        assert turns[policy].total() == 100
    assert turns["round_robin"] == turns["least_connections"] == {b"0": 50, b"1": 50}
    # One client, one worker.
    assert len(turns.pop("client_hash")) == 1
    assert all(len(each) == 2 for each in turns.values())
