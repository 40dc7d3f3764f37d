"""Under overload and with failing workers, what can be served is, and the rest is refused early.

Real workers (aiohttp and Node) whose idle connections end at any moment, a worker that is
killed under load, workers that all fail, and far more requests than workers can serve.
"""

import asyncio
import random
import signal
import sys
import threading
import time
from collections import Counter
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SELDOM = {"interval": "1h"}
"""Health checks that notice nothing while a test lasts: it is the traffic that finds out."""
AIOHTTP = """
import os
from aiohttp import web

async def answer(request):
    return web.Response(text=str(len(await request.read())))

app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), keepalive_timeout=%s, print=None)
"""
NODE = """
const server = require("http").createServer((request, response) => {
  let size = 0;
  request.on("data", (piece) => { size += piece.length; });
  request.on("end", () => response.end(String(size)));
});
server.keepAliveTimeout = %s;
if ("keepAliveTimeoutBuffer" in server) server.keepAliveTimeoutBuffer = 0;
server.listen(process.env.PORT, "127.0.0.1");
"""


async def storm(
    run: "Cluster", request: bytes, *, clients: int, requests: int, pause: float
) -> Counter[int]:
    """Ask on kept connections, with pauses of any length up to `pause`; count the answers."""
    statuses: Counter[int] = Counter()
    dice = random.Random(1)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*run.address())
        for _ in range(requests):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[int(head.split(b" ", 2)[1])] += 1
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(fields[b"Content-Length"]))
            if fields.get(b"Connection") == b"close":
                writer.close()
                reader, writer = await asyncio.open_connection(*run.address())
            if pause:
                await asyncio.sleep(dice.uniform(0, pause))
        writer.close()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return statuses


def post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


# -- connections that have ended unnoticed


@pytest.mark.parametrize(
    ("program", "keepalive", "pause", "size"),
    [
        # aiohttp counts from the beginning of a connection, too: less would be too little
        # for a new one on a busy machine.
        pytest.param(AIOHTTP, "0.1", 0.2, 10, id="aiohttp"),
        pytest.param(AIOHTTP, "0.1", 0.2, 200_000, id="aiohttp, large"),
        pytest.param(NODE, "5", 0.02, 0, id="node, empty", marks=pytest.mark.needs("node")),
        pytest.param(NODE, "5", 0.02, 10, id="node", marks=pytest.mark.needs("node")),
    ],
)
def test_no_post_fails_because_a_worker_closes_its_idle_connection(
    penstock: "Penstock", tmp_path: "Path", program: str, keepalive: str, pause: float, size: int
) -> None:
    (tmp_path / "worker").write_text(program % keepalive)
    run = penstock("-w", "2", "--", sys.executable if program == AIOHTTP else "node", "worker")
    statuses = asyncio.run(storm(run, post(size), clients=32, requests=20, pause=pause))
    assert statuses == {200: 640}
    assert run.metric("penstock_connection_errors_total") == 0


# -- workers that fail


def test_a_worker_that_is_killed_under_load_costs_no_idempotent_request(
    penstock: "Penstock",
) -> None:
    run = penstock("penstock_worker.demo:app", "-w", "3")
    over = threading.Event()

    def kill() -> None:
        try:
            for slot in range(3):
                pid = run.workers()[slot]["pid"]
                psutil.Process(pid).send_signal(signal.SIGKILL)
                run.until(partial(is_replaced, run, slot, pid))
        finally:
            over.set()

    async def load() -> Counter[int]:
        statuses: Counter[int] = Counter()
        while not over.is_set():
            statuses += await storm(run, GET, clients=24, requests=20, pause=0.0)
        return statuses

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        statuses = asyncio.run(load())
    finally:
        killer.join()
    assert statuses.keys() == {200}
    assert run.metric("penstock_child_exits_total", status="SIGKILL") == 3


def is_replaced(run: "Cluster", slot: int, pid: int) -> bool:
    worker = run.workers()[slot]
    return worker["pid"] not in (None, pid) and worker["health"] == "up"


def test_when_every_worker_fails_retries_are_bounded(
    penstock: "Penstock", origin: "Worker"
) -> None:
    tries: list[bytes] = []

    def answer(wire: "Wire") -> None:
        tries.append(wire.head())

    workers = [origin(answer) for _ in range(4)]
    words = [word for worker in workers for word in ("--to", worker.address)]
    run = penstock(*words, health=SELDOM, retries={"budget": "10%", "min_per_second": 1})
    statuses = asyncio.run(storm(run, GET, clients=4, requests=100, pause=0.0))
    assert statuses == {502: 400}
    # The first ten seconds' least, or a tenth; it may have turned while we asked.
    retries = run.metric("penstock_retries_total")
    assert 0 < retries <= 60
    # A retry that finds no worker left is counted as well.
    assert 400 <= len(tries) <= 400 + retries
    # Each was tried twice, or not for want of budget.
    exhausted = run.metric("penstock_retries_exhausted_total")
    assert run.metric("penstock_retries_denied_total") + exhausted == 400
    assert 0 < exhausted <= retries


# -- too much


def test_under_overload_what_can_be_served_is_and_the_rest_is_refused_early(
    penstock: "Penstock", origin: "Worker"
) -> None:
    """An open loop: they come however slow the answers are, five times what can be served."""
    served: list[int] = []
    busy: Counter[str] = Counter()
    worst: list[int] = []

    def worker(name: str) -> str:
        def answer(wire: "Wire") -> None:
            while head := wire.head():
                busy[name] += 1
                worst.append(busy[name])
                served.append(int(head.split(b" ", 2)[1][1:]))
                time.sleep(0.02)
                busy[name] -= 1
                wire.send(OK)

        return str(origin(answer).address)

    run = penstock(
        "--to", worker("one"), "--to", worker("other"),
        health=SELDOM,
        limits={"per_worker": 1, "queue": 20}, timeouts={"queue": "500ms"},
    )  # fmt: skip
    answers, longest = asyncio.run(flood(run, requests=1000, every=0.002))
    statuses = Counter(status for status, _ in answers)
    assert statuses.keys() == {200, 503}
    assert sum(statuses.values()) == 1000
    assert all(fields.get(b"Retry-After") == b"1" for status, fields in answers if status == 503)
    # Nothing was done in vain, and no more at a time than each may have.
    assert len(served) == statuses[200]
    assert max(worst) == 1
    assert longest <= 20
    assert statuses[200] >= 40, "about a hundred a second, if the machine is not busy"
    # First come, first served: requests were served in the order of their arrival.
    overtaken = max(last - one for one, last in zip(served, accumulate(served, max), strict=True))
    assert overtaken <= 50, "connections of about the same time may be read in any order"
    rejected = run.metric("penstock_rejected_total")
    assert rejected == statuses[503]
    assert run.metric("penstock_queue_length") == 0


async def flood(
    run: "Cluster", *, requests: int, every: float
) -> tuple[list[tuple[int, dict[bytes, bytes]]], int]:
    """Ask that often, each on its own; the answers, and the longest queue that was seen."""
    answers: list[tuple[int, dict[bytes, bytes]]] = []
    longest = 0
    over = asyncio.Event()

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection(*run.address())
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % number)
        head, _, _ = (await reader.read()).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        answers.append((int(lines[0].split(b" ", 2)[1]), fields))
        writer.close()

    async def watch() -> None:
        nonlocal longest
        while not over.is_set():
            length = await asyncio.to_thread(run.metric, "penstock_queue_length")
            longest = max(longest, int(length))
            await asyncio.sleep(0.05)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        async with asyncio.TaskGroup() as clients:
            for number in range(requests):
                clients.create_task(ask(number))
                await asyncio.sleep(every)
        over.set()
        await watching
    return answers, longest
