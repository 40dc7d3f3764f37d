"""A comparison as a machine of two cores would give it, made by hand and the same each time.

A fixture and not a module to import, because test modules cannot import each other.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import pytest

from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.result import (
    Comparison,
    FaultKind,
    FaultResult,
    HeldResult,
    LoadKind,
    LoadResult,
    Spread,
    Subject,
)

MACHINE = {
    "cpu": "AMD EPYC 7B13, 2 cores",
    "memory": "8 GiB",
    "kernel": "Linux 6.1.0-28-amd64",
    "python": "CPython 3.11.2",
    "uvloop": "0.23.0",
    "descriptors": "1048576",
    "ephemeral ports": "28232",
}
CONFIG = """\
[service.web]
app = "shop.web:app"
workers = 4
balance = "round_robin"

[service.web.health]
path = "/healthz"
interval = "500ms"
"""


class _Shape(NamedTuple):
    """What a scheme is like: the whole subject is made from it."""

    name: str
    scheme: str
    mode: str
    keepalive: float
    connect: float
    proxy: tuple[float, float]
    """CPU microseconds a request: keep-alive, connection per request."""
    workers: tuple[float, float]
    fds: dict[str, float]
    memory: dict[str, float]
    ports: float
    split: tuple[int, ...]
    faults: dict[FaultKind, tuple[int, float | None, float]]


SHAPES = (
    _Shape("ports/http", "ports", "http", 17_900, 5_900, (26.4, 118.0), (61.0, 97.0),
           {"supervisor": 0.0, "proxy": 2.0, "workers": 1.0}, {"proxy": 5200, "workers": 9100}, 1.0,
           (22_480, 22_478, 22_481, 22_479),
           {"kill": (0, 0.412, 0.021), "roll": (0, 1.9, 0.034), "block": (0, 1.0, 1.004)}),
    _Shape("ports/tcp", "ports", "tcp", 19_400, 6_700, (13.9, 88.0), (60.0, 99.0),
           {"supervisor": 0.0, "proxy": 2.0, "workers": 1.0}, {"proxy": 2700, "workers": 9200}, 1.0,
           (16, 16, 16, 16),
           {"kill": (14, 0.405, 0.030), "roll": (0, 2.0, 0.031), "block": (0, 1.0, 1.003)}),
    _Shape("handoff", "handoff", "", 24_300, 10_900, (0.4, 17.2), (60.5, 104.0),
           {"supervisor": 0.0, "proxy": 0.0, "workers": 1.0}, {"proxy": 40, "workers": 9300}, 0.0,
           (16, 16, 16, 16),
           {"kill": (15, 0.398, 0.026), "roll": (0, 1.9, 0.030), "block": (0, 1.0, 1.002)}),
    _Shape("shared", "shared", "", 24_500, 12_600, (0.0, 0.0), (60.2, 101.0),
           {"supervisor": 0.0, "workers": 1.0}, {"workers": 9300}, 0.0, (23, 17, 14, 10),
           {"kill": (19, 0.371, 0.024), "roll": (2, 1.8, 0.041), "block": (0, 1.0, 1.001)}),
    _Shape("reuseport", "reuseport", "", 24_400, 12_900, (0.0, 0.0), (60.3, 98.0),
           {"supervisor": 0.0, "workers": 1.0}, {"workers": 9300}, 0.0, (21, 9, 19, 15),
           {"kill": (17, 0.38, 0.382), "roll": (0, 1.9, 0.051), "block": (0, None, 1.006)}),
)  # fmt: skip
NGINX = _Shape("127.0.0.1:8081", "", "", 21_800, 8_800, (0.0, 0.0), (74.0, 160.0),
               {}, {}, 1.0, (), {})  # fmt: skip


@pytest.fixture
def sample() -> Comparison:
    return _comparison(SHAPES)


@pytest.fixture
def compared() -> Callable[..., Comparison]:
    """`compared(others=2)`: the sample and as many external addresses.

    `noise` multiplies what rounds differ by.
    """
    return lambda others=0, seed=1, rounds=3, noise=1.0: _comparison(
        (*SHAPES, *(NGINX._replace(name=f"127.0.0.1:808{n}") for n in range(others))),
        seed,
        rounds,
        noise,
    )


def _comparison(
    shapes: Sequence[_Shape], seed: int = 1, rounds: int = 3, noise: float = 1.0
) -> Comparison:
    random = _Rounds(seed, rounds, noise)
    return Comparison(
        penstock="0.1.0",
        build="compiled",
        started="2026-11-21T07:12:44Z",
        command="penstock compare shop.web:app -w 4",
        machine=MACHINE,
        config=CONFIG,
        workers=4,
        rounds=rounds,
        seconds=3.0,
        quick=False,
        interrupted=False,
        subjects=tuple(_subject(shape, random) for shape in shapes),
    )


class _Rounds:
    """Makes the values of all rounds."""

    def __init__(self, seed: int, count: int, noise: float) -> None:
        self._random, self._count, self._noise = Random(seed), count, noise

    def spread(self, value: float, much: float) -> Spread:
        much *= self._noise
        return Spread(
            values=tuple(
                value * self._random.uniform(1 - much, 1 + much) if much < 1
                else value * self._random.lognormvariate(0, much)
                for _ in range(self._count)
            )
        )  # fmt: skip


def _subject(shape: _Shape, random: _Rounds) -> Subject:
    loads: dict[LoadKind, LoadResult] = {
        "keepalive": _load(random, shape, 0, shape.keepalive, 64 / shape.keepalive),
        "connect": _load(random, shape, 1, shape.connect, 64 / shape.connect),
        "rate": _load(random, shape, 0, 8000.0, 9 / shape.keepalive, 8000.0),
    }
    shares = [count / sum(shape.split) for count in shape.split]
    return Subject(
        name=shape.name,
        scheme=shape.scheme,
        mode=shape.mode,
        loads=loads,
        held=_held(shape) if shape.fds else None,
        split={str(slot): count for slot, count in enumerate(shape.split)},
        split_of="requests" if shape.mode == "http" else "connections",
        jain=1 / (len(shares) * sum(one * one for one in shares)) if shares else None,
        faults={
            kind: FaultResult(requests=9600, failed=failed, full_capacity_s=after, worst_s=worst)
            for kind, (failed, after, worst) in shape.faults.items()
        },
    )


def _load(
    random: _Rounds, shape: _Shape, which: int, throughput: float, usual: float, rate: float = 0.0
) -> LoadResult:
    # Always the same shape: what differs between two runs is `spread`.
    shape_of = Random(7)
    found = [_latency(shape_of, usual) for _ in range(6000)]
    counts: dict[int, int] = {}
    for latency in found:
        bucket = histogram.index(latency)
        counts[bucket] = counts.get(bucket, 0) + int(throughput * 9 / 6000)
    ordered = sorted(found)
    cpu = {"supervisor": 0.1, "proxy": shape.proxy[which], "workers": shape.workers[which]}
    if not shape.scheme:
        cpu = {"server": shape.workers[which]}

    spread = random.spread
    return LoadResult(
        requests=int(throughput * 9),
        errors={},
        requests_per_s=spread(throughput, 0.001 if rate else 0.03),
        p50_s=spread(ordered[3000], 0.02),
        p90_s=spread(ordered[5400], 0.04),
        p99_s=spread(ordered[5940], 0.08),
        p999_s=spread(ordered[5994], 0.25),
        worst_s=ordered[-1],
        histogram=counts,
        cpu_us={role: spread(value, 0.02) for role, value in cpu.items() if value},
        limited=False,
        rate=rate,
    )


def _latency(random: Random, usual: float) -> float:
    slow = 6.0 if random.random() < 0.01 else 1.0
    return usual * slow * random.lognormvariate(-0.04, 0.28)


def _held(shape: _Shape) -> HeldResult:
    base = {"supervisor": 31, "proxy": 22, "workers": 60}
    return HeldResult(
        connections=1000,
        fds=shape.fds,
        memory={role: float(value) for role, value in shape.memory.items()},
        ephemeral_ports=shape.ports,
        curve=tuple(
            (n, {role: base[role] + round(each * n) for role, each in shape.fds.items()})
            for n in (0, 100, 250, 500, 750, 1000)
        ),
    )
