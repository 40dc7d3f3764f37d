"""A lossy network between clients and proxy costs time and nothing else.

The proxy is in one network namespace and its clients in another. The wire between them loses,
doubles, delays and reorders packets, and is cut for a while. Clients disconnect meanwhile, and
their last packets may not arrive. The promises are those of every other storm.
"""

import ast
import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.chaos.test_storms import LENIENT, ROOT, clients, program
from tests.support.chaos import lossy_network
from tests.support.chaos.client import Client
from tests.support.chaos.load import Load
from tests.support.chaos.monkey import Monkey
from tests.support.chaos.scenes import TCP, TCP_VANISHING, Promise
from tests.support.chaos.witness import Witness

if TYPE_CHECKING:
    from tests.chaos.conftest import Start
    from tests.support.chaos.ledger import Ledger

SHARE: Final = 0.1
"""Of the time that all storms have, for both tests."""
PROBE_S: Final = 3
SHORT: Final = {
    "http": {
        "stop": "5s", "response": "5s", "queue": "20s", "head": "15s", "body": "15s",
        "keepalive": "10s",
    },
    "tcp": {"stop": "5s", "queue": "20s", "tunnel": "15s"},
}  # fmt: skip
"""What ends a connection whose client has gone without a word that arrived."""


class Line:
    """The wire's process, and the way into its namespaces."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "no namespaces"
        self._process = process
        self.servers = os.open(f"/proc/{process.pid}/fd/{int(line)}", os.O_RDONLY)
        self._clients = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)

    def is_now(self, state: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{state}\n")
        self._process.stdin.flush()

    def socket(self) -> socket.socket:
        """One that belongs to the clients' side, wherever it is used.

        With keep-alive probes: a reset that the wire loses is not sent again, and who only
        reads would never notice it.
        """
        lossy_network.move_to(self._clients)
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            lossy_network.move_to(self.servers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
        return sock

    def end(self) -> dict[str, int]:
        """What it has done."""
        os.close(self.servers)
        os.close(self._clients)
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        did: dict[str, int] = ast.literal_eval(out)
        return did


@contextmanager
def _at_home() -> Iterator[None]:
    """Whatever happens, this thread is back in the namespace that it came from."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        lossy_network.move_to(home)
        os.close(home)


@pytest.fixture
def line(seed: int, ledger: "Ledger") -> Iterator[Line]:
    """From here on this thread, and all that it starts, is on the servers' side."""
    if not Path("/dev/net/tun").exists():
        reason = "needs /dev/net/tun"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with ExitStack() as stack:
        stack.enter_context(_at_home())
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.chaos.lossy_network", str(seed)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(process.wait, 60)
        stack.callback(process.kill)
        made = Line(process)
        lossy_network.move_to(made.servers)
        yield made
        did = made.end()
        ledger.faults.update(did)
        assert all(did.values()), did


async def change(line: Line, dice: random.Random, ledger: "Ledger", storm: asyncio.Event) -> None:
    """Bad, and now and then nothing at all, until the storm is over."""
    while not storm.is_set():
        line.is_now("bad")
        await asyncio.sleep(dice.uniform(0.5, 2.0))
        line.is_now("down")
        ledger.faults["line down"] += 1
        await asyncio.sleep(dice.uniform(0.1, 0.8))
    line.is_now("good")


@pytest.mark.root
@pytest.mark.needs("ip")
@pytest.mark.parametrize("mode", ["http", "tcp"])
async def test_a_lossy_network_costs_time_and_nothing_else(
    line: Line, start: "Start", ledger: "Ledger", seed: int, seconds: float, mode: str
) -> None:
    name = f"{seed}/network-{mode}"
    keys = {
        **LENIENT, **program(mode, seed, rate=0.0), "mode": mode, "access_log": "off",
        "listen": f"{lossy_network.SERVERS}:0", "timeouts": SHORT[mode],
    }  # fmt: skip
    run = await asyncio.to_thread(start, web=keys)
    address = run.address()
    tcp = Promise(repeats=False, staying=TCP, leaving=TCP_VANISHING)
    promise = tcp if mode == "tcp" else Promise()
    load = Load(name, lambda: Client.connect(address, line.socket()), promise, ledger)
    load.largest = 20_000
    witness = Witness(run, "web")
    monkey = Monkey(run, "web", name, ledger, ("worker killed", "workers replaced"))
    await clients(load, 1.0, warm=True)
    await asyncio.to_thread(witness.settled)
    before = await asyncio.to_thread(witness.view)
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(monkey.storm())
        group.create_task(witness.ask())
        group.create_task(change(line, random.Random(name), ledger, over))
        await clients(load, max(4.0, seconds * SHARE / 2))
        monkey.restless = witness.restless = False
        over.set()
    await asyncio.to_thread(witness.settled)
    await asyncio.to_thread(witness.compare, before)
    assert not ledger.wrong, "\n".join((*ledger.wrong[:20], str(ledger), run.err[-3000:]))
    assert ledger.lost == 0
    assert ledger.adds_up, ledger
    assert witness.asked > 0
    witness.log_is_clean()
