"""Under any fault every request has one answer or a visible cut, and nothing leaks afterwards.

Real clients, faulty workers, and a monkey that kills, stops and replaces processes, under each
scheme. A storm asserts what the suite promises: no answer is wrong or belongs to another request,
a repeatable request succeeds while one worker lives, and the admin port answers throughout. With
one good worker alive the service is back to full strength within a bounded time after the last
fault, without anybody's help: hung processes stay hung until they are replaced. When
it is over, descriptors, memory, threads, tasks and active connections are what they were, the
counters add up, and the log has no traceback.
"""

import asyncio
import os
import ssl
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme
from tests.support.chaos import deal
from tests.support.chaos.client import Client
from tests.support.chaos.load import Load
from tests.support.chaos.monkey import Monkey
from tests.support.chaos.scenes import DEADLY, PLAIN, TCP, TCP_VANISHING, Promise
from tests.support.chaos.tls_client import TlsClient
from tests.support.chaos.witness import Witness

if TYPE_CHECKING:
    from tests.chaos.conftest import Start
    from tests.support.chaos.ledger import Ledger
    from tests.support.live.cluster import Cluster

ROOT: Final = Path(__file__).parents[2]
CLIENTS: Final = 16
NAME: Final = "chaos.example"
WORKERS: Final = 4
LEAST_S: Final = 2.5
"""A shorter storm proves nothing."""
PROXY_HEADER: Final = b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 80\r\n"
RATE: Final = 0.15
"""Of the requests of a worker that does wrong."""
LEFT: Final = (
    "never said a word", "left in its head", "left in its body", "left before its answer",
    "left in its answer", "left with answers to come", "stopped reading", "closed its half",
)  # fmt: skip
KILLS: Final = (
    "worker killed", "worker killed", "worker terminated", "worker stopped", "worker hung",
)  # fmt: skip
MORE: Final = (
    *KILLS, "worker killed", "workers replaced", "log opened anew", "starts fail",
    "a bad version rolled out", "file changed", "file broken",
)  # fmt: skip

RETRIES: Final[dict[str, Any]] = {
    "attempts": 16,
    "on": ["connect", "reset", "timeout"],
    "budget": "100%",
    "min_per_second": 1000,
}
"""As long as one good worker lives it is asked in the end, however many others fail."""

LENIENT: Final[dict[str, Any]] = {
    "restart": {"max_restarts": 1_000_000, "backoff": "50ms", "backoff_max": "200ms"},
    "health": {"interval": "300ms", "timeout": "1s"},
    "liveness": {"timeout": "5s"},
    "timeouts": {"stop": "5s"},
    "rollout": {"watch": "200ms"},
}
"""No worker is given up, one that is back is found at once, and one that hangs is replaced soon."""
STRICT: Final[dict[str, Any]] = {
    **LENIENT,
    "restart": {"max_restarts": 3, "within": "10s", "backoff": "50ms", "retry_after": "1s"},
}
"""Workers are given up, and tried again."""


@dataclass(frozen=True, slots=True)
class Storm:
    """One service, what is asked of it and what is done to it."""

    name: str
    keys: dict[str, Any]
    promise: Promise
    deeds: tuple[str, ...]
    share: float
    """Of the time that all storms have."""
    adds_up: tuple[str, ...] = field(default=())
    """What of `Witness` holds afterwards; counters of what was killed are gone with it."""
    proxies: int = 1
    preface: bytes = b""
    """What clients send first: the header of the proxy in front."""
    tls: bool = False


def program(mode: str, seed: int, rate: float = RATE) -> dict[str, Any]:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return {
        "command": [sys.executable, "-m", "tests.support.chaos.worker", mode, str(seed), str(rate)],
        "env": {"PYTHONPATH": path, "CHAOS_SEED": str(seed), "CHAOS_RATE": str(rate)},
        "workers": WORKERS,
    }


def app(seed: int) -> dict[str, Any]:
    keys = program("http", seed)
    del keys["command"]
    return {**keys, "app": "tests.support.chaos.app:app", "directory": str(ROOT)}


def storms(seed: int) -> list[Storm]:
    http: dict[str, Any] = {
        **LENIENT,
        **program("http", seed),
        "access_log": "./access.log",
        "retries": RETRIES,
        "timeouts": {"stop": "5s", "response": "3s", "connect": "2s", "queue": "20s"},
    }
    tcp = {**LENIENT, **program("tcp", seed), "mode": "tcp", "access_log": "off"}
    alone = {**LENIENT, **program("direct", seed), "access_log": "off"}
    relayed = Promise(repeats=False, staying=TCP, leaving=TCP_VANISHING)
    direct = Promise(repeats=False, staying=PLAIN)
    deadly = {**STRICT, **program("http", seed, rate=0.0), "access_log": "./access.log"}
    passed = Promise(repeats=False, staying=PLAIN, forms=(b"sized", b"chunked"))
    return [
        Storm("ports-http", http, Promise(), MORE, 0.25,
              ("requests_add_up", "connections_add_up")),
        Storm("ports-http-proxy-killed", http, Promise(may_break=True),
              (*KILLS, "proxy killed"), 0.1),
        Storm("ports-tcp", tcp, relayed, MORE, 0.1, ("connections_add_up",)),
        Storm("handoff", {**LENIENT, **app(seed), "scheme": "handoff", "access_log": "off"},
              passed, (*MORE, "proxy stopped"), 0.15, ("handoffs_add_up",)),
        Storm("two-proxies", {**http, "access_log": "off"}, Promise(may_break=True),
              (*MORE, "proxy killed", "proxy stopped"), 0.1, proxies=2),
        Storm("tls", http, Promise(), MORE, 0.1, ("requests_add_up",), tls=True),
        Storm("behind-a-proxy", {**http, "accept_proxy": True, "trusted_proxies": ["127.0.0.1"]},
              Promise(), MORE, 0.05, ("requests_add_up",), preface=PROXY_HEADER),
        Storm("queries-of-death", deadly, Promise(repeats=False, staying=DEADLY),
              (*KILLS, "starts fail"), 0.1, ("requests_add_up",)),
        Storm("shared", {**alone, "scheme": "shared"}, direct, MORE, 0.05),
        Storm("reuseport", {**alone, "scheme": "reuseport"}, direct, MORE, 0.05),
    ]  # fmt: skip


def secured(storm: Storm, folder: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """The same service behind TLS, and what its clients trust."""
    authority = trustme.CA()
    made = authority.issue_cert(NAME)
    cert, key = folder / "cert.pem", folder / "key.pem"
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return {**storm.keys, "tls": {"cert": str(cert), "key": str(key)}}, context


async def run_storm(
    run: "Cluster",
    storm: Storm,
    seed: str,
    seconds: float,
    ledger: "Ledger",
    context: ssl.SSLContext | None = None,
    broken: Path | None = None,
) -> tuple[Load, Witness]:
    """The storm itself: warm up, look, break everything, let it rest, look again."""
    address = run.address()

    async def connect() -> Client:
        if context is not None:
            secure = await TlsClient.connect(address)
            await secure.shake_hands(context, NAME)
            return secure
        client = await Client.connect(address)
        if storm.preface:
            await client.send(storm.preface)
        return client

    load = Load(seed, connect, storm.promise, ledger)
    witness = Witness(run, "web")
    monkey = Monkey(run, "web", seed, ledger, storm.deeds, broken)
    await clients(load, seconds / 4, warm=True)
    await asyncio.to_thread(witness.settled)
    before = await asyncio.to_thread(witness.view)
    async with asyncio.TaskGroup() as group:
        group.create_task(monkey.storm())
        group.create_task(witness.ask())
        await clients(load, seconds * 3 / 4)
        monkey.restless = witness.restless = False
    await asyncio.to_thread(witness.settled)
    await asyncio.to_thread(witness.compare, before)
    return load, witness


async def clients(load: Load, seconds: float, *, warm: bool = False) -> None:
    load.restless = True
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(load.client(number + CLIENTS * warm))
        await asyncio.sleep(seconds)
        load.restless = False


@pytest.fixture(scope="module")
def occurred() -> dict[str, Counter[str]]:
    """By storm: which faults there were, and how many of each."""
    return {}


@pytest.mark.parametrize("name", [storm.name for storm in storms(0)])
async def test_every_request_is_answered_once_or_visibly_cut_and_nothing_leaks(
    start: "Start",
    ledger: "Ledger",
    occurred: dict[str, Counter[str]],
    seed: int,
    seconds: float,
    name: str,
    tmp_path: Path,
) -> None:
    (storm,) = (storm for storm in storms(seed) if storm.name == name)
    keys, context = secured(storm, tmp_path) if storm.tls else (storm.keys, None)
    diary, broken = tmp_path / "diary", tmp_path / "broken"
    noted = {deal.DIARY: str(diary), deal.BROKEN: str(broken)}
    keys = {**keys, "env": {**keys["env"], **noted}}
    run = await asyncio.to_thread(start, proxies=storm.proxies, web=keys)
    share = max(LEAST_S, seconds * storm.share)
    load, witness = await run_storm(run, storm, f"{seed}/{name}", share, ledger, context, broken)
    ledger.faults.update(deal.noted(diary))
    occurred[name] = ledger.faults
    assert not ledger.wrong, "\n".join((*ledger.wrong[:20], str(ledger), run.err[-3000:]))
    assert ledger.lost == 0
    assert ledger.adds_up, ledger
    assert ledger.answered > ledger.cut
    assert witness.asked > 0
    for what in storm.adds_up:
        check = getattr(witness, what)
        await asyncio.to_thread(check, *(() if what == "handoffs_add_up" else (load,)))
    witness.log_is_clean()


def test_every_kind_of_fault_occurred(occurred: dict[str, Counter[str]]) -> None:
    if len(occurred) < len(storms(0)):
        pytest.skip("proves something of all storms together")
    wanted = {f"a worker: {fault}" for fault in (*deal.HTTP_FAULTS, *deal.TCP_FAULTS)}
    wanted |= {f"a client that {how}" for how in LEFT}
    wanted |= {"a worker: uncaught", "a query of death"}
    wanted |= {deed for storm in storms(0) for deed in storm.deeds}
    assert wanted <= set().union(*occurred.values())
