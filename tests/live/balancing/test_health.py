"""An unhealthy worker gets no requests, and gets them again when it is healthy.

While there is no worker, requests wait for as long as `timeouts.queue` allows.
"""

from collections import Counter
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
SELDOM = {"interval": "1h"}
"""Health checks that notice nothing while a test lasts: it is the traffic that finds out."""


def good(wire: "Wire") -> None:
    while wire.head():
        wire.send(OK)


def ended(run: "Cluster") -> list[tuple[int, str]]:
    return [(line["status"], line["termination"]) for line in run.log]


def test_without_a_worker_a_request_waits_and_is_503(
    penstock: "Penstock", origin: "Worker"
) -> None:
    worker = origin(good)
    run = penstock(
        "--to", worker.address,
        health={"interval": "50ms", "fall": 1}, timeouts={"queue": "300ms"},
    )  # fmt: skip
    worker.away()
    run.until(lambda: run.workers()[0]["health"] == "down")
    answer = run.connect().ask(GET)
    assert (answer.status, answer.body) == (503, b"no worker available\n")
    run.until(lambda: ended(run) == [(503, "no_worker")])
    assert run.metric("penstock_rejected_total", reason="no_worker") == 1


def test_a_worker_that_returns_in_time_serves_the_requests_that_wait(
    penstock: "Penstock", origin: "Worker"
) -> None:
    worker = origin(good)
    run = penstock(
        "--to", worker.address,
        health={"interval": "50ms", "fall": 1, "rise": 1}, timeouts={"queue": "60s"},
    )  # fmt: skip
    worker.away()
    run.until(lambda: run.workers()[0]["health"] == "down")
    wires = [run.connect() for _ in range(20)]
    for wire in wires:
        wire.send(GET)
    run.until(lambda: run.metric("penstock_queue_length") == 20)
    worker.back()
    assert [wire.answer().status for wire in wires] == [200] * 20


def test_a_worker_whose_health_path_fails_leaves_the_rotation_and_comes_back(
    penstock: "Penstock", origin: "Worker"
) -> None:
    status = [b"200 OK"]

    def answer(wire: "Wire") -> None:
        while True:
            if wire.head().startswith(b"GET /healthz "):
                wire.send(b"HTTP/1.1 " + status[0] + b"\r\nContent-Length: 0\r\n\r\n")
            else:
                wire.send(OK)

    run = penstock(
        "--to", origin(answer).address, "--to", origin(good).address,
        health={"path": "/healthz", "interval": "50ms", "fall": 2, "rise": 2},
    )  # fmt: skip

    def served() -> set[str]:
        before = len(run.log)
        wire = run.connect()
        assert [wire.ask(GET).status for _ in range(10)] == [200] * 10
        run.until(lambda: len(run.log) == before + 10)
        return {line["worker"] for line in run.log[before:]}

    assert served() == {"web/0", "web/1"}
    status[0] = b"503 Service Unavailable"
    run.until(lambda: run.workers()[0]["health"] == "down")
    assert served() == {"web/1"}
    assert run.metric("penstock_health_checks_total", slot="0", result="failed") >= 2
    status[0] = b"200 OK"
    run.until(lambda: run.workers()[0]["health"] == "up")
    assert served() == {"web/0", "web/1"}


class Switchable:
    """A worker whose health the test sets."""

    def __init__(self) -> None:
        self.is_healthy = True
        self.served = 0

    def answer(self, wire: "Wire") -> None:
        while head := wire.head():
            if not head.startswith(b"GET /healthz "):
                self.served += 1
                wire.send(OK)
            else:
                status = b"200 OK" if self.is_healthy else b"503 Service Unavailable"
                wire.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)


OFTEN = {"path": "/healthz", "interval": "50ms", "fall": 1, "rise": 1}


def test_a_worker_that_comes_back_has_a_slow_start(penstock: "Penstock", origin: "Worker") -> None:
    worker = Switchable()
    run = penstock(
        "--to", origin(worker.answer).address, "--to", origin(Switchable().answer).address,
        health={**OFTEN, "slow_start": "1s"},
    )  # fmt: skip
    wire = run.connect()
    checks = partial(run.metric, "penstock_health_checks_total", slot="1", result="ok")

    def first_share() -> int:
        """Of forty requests, right after it came back; more if the machine was slow."""
        worker.is_healthy = False
        run.until(lambda: run.workers()[0]["health"] == "down")
        # The other one is warm by then.
        run.until(lambda: checks() >= 25)
        before = worker.served
        worker.is_healthy = True
        run.until(lambda: run.workers()[0]["health"] == "up")
        assert [wire.ask(GET).status for _ in range(40)] == [200] * 40
        return worker.served - before

    run.until(lambda: 0 < first_share() <= 10)

    def has_its_share() -> bool:
        before = worker.served
        assert [wire.ask(GET).status for _ in range(40)] == [200] * 40
        return worker.served - before == 20

    run.until(has_its_share)


def test_with_too_few_healthy_workers_all_living_ones_are_used(
    penstock: "Penstock", origin: "Worker"
) -> None:
    workers = [Switchable() for _ in range(4)]
    words = [word for one in workers for word in ("--to", origin(one.answer).address)]
    run = penstock(*words, health=OFTEN, ejection={"panic": "50%"})
    for one in workers[1:]:
        one.is_healthy = False
    run.until(lambda: run.metric("penstock_panic_mode", service="web") == 1)
    run.until(lambda: [w["health"] for w in run.workers()] == ["up", *["down"] * 3])
    wire = run.connect()
    before = [one.served for one in workers]
    assert [wire.ask(GET).status for _ in range(40)] == [200] * 40
    assert [one.served - was for one, was in zip(workers, before, strict=True)] == [10] * 4
    assert "web: too few workers are in the rotation: all that live are used" in run.err
    workers[1].is_healthy = True
    run.until(lambda: run.metric("penstock_panic_mode", service="web") == 0)
    before = [one.served for one in workers]
    assert [wire.ask(GET).status for _ in range(40)] == [200] * 40
    assert [one.served - was for one, was in zip(workers, before, strict=True)] == [20, 20, 0, 0]


def test_a_worker_that_answers_5xx_is_ejected_and_tried_again(
    penstock: "Penstock", origin: "Worker"
) -> None:
    reply = [ERROR]

    def answer(wire: "Wire") -> None:
        while wire.head():
            wire.send(reply[0])

    run = penstock(
        "--to", origin(answer).address, "--to", origin(good).address, "--to", origin(good).address,
        health=SELDOM, ejection={"failures": 3, "eject_for": "1s"},
    )  # fmt: skip
    wire = run.connect()
    turns = Counter(wire.ask(GET).status for _ in range(30))
    assert turns[500] >= 3
    assert run.metric("penstock_ejections_total", slot="0") >= 1
    reply[0] = OK
    run.until(lambda: run.workers()[0]["health"] == "up")
    assert [wire.ask(GET).status for _ in range(30)] == [200] * 30


def test_a_worker_that_fails_every_second_request_is_ejected(
    penstock: "Penstock", origin: "Worker"
) -> None:
    """Whichever way: by an answer, or by one that breaks off and is asked for elsewhere."""
    asked = count()

    def answer(wire: "Wire") -> None:
        while wire.head():
            turn = next(asked) % 4
            if turn == 1:
                wire.send(ERROR)
            elif turn == 3:
                # Silence would look like the end of a connection that was idle.
                wire.send(OK[:20])
                return
            else:
                wire.send(OK)

    run = penstock(
        "--to", origin(answer).address, "--to", origin(good).address, "--to", origin(good).address,
        health=SELDOM, ejection={"eject_for": "1h"}, retries={"min_per_second": 1000},
    )  # fmt: skip
    wire = run.connect()

    def is_ejected() -> bool:
        assert {wire.ask(GET).status for _ in range(30)} <= {200, 500}
        return bool(run.workers()[0]["health"] == "ejected")

    run.until(is_ejected)
    assert " failures of " in run.workers()[0]["reason"]
    assert [wire.ask(GET).status for _ in range(30)] == [200] * 30
