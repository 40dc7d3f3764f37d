"""The result of a comparison: plain frozen values, the content of `--json`.

Table, page, paragraphs and baseline are made from a `Comparison` alone. So a file that was
written yesterday on another machine can be shown and compared today. No I/O, no clock.

Units: seconds, bytes, and microseconds of CPU time where a name says `cpu_us`. Roles are
"supervisor", "proxy", "workers", and "server" for an address that somebody else runs.
"""

from statistics import median
from typing import Final, Literal

from pydantic import Field

from penstock_proxy.config import FrozenModel

FORMAT: Final = 3
READABLE: Final = (1, 2, 3)
"""Formats that are still read. 1 has no noise, no kernel time and no peers, 2 has no build."""
LOADS: Final[tuple["LoadKind", ...]] = ("keepalive", "connect", "rate")
FAULTS: Final = ("kill", "roll", "block")

LoadKind = Literal["keepalive", "connect", "rate"]
FaultKind = Literal["kill", "roll", "block"]


class Spread(FrozenModel):
    """The values of one figure in all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


class LoadResult(FrozenModel):
    """One kind of load on one subject, a value a round."""

    requests: int
    errors: dict[str, int]
    """By kind: connect, no port, reset, timeout, status, protocol."""
    requests_per_s: Spread
    p50_s: Spread
    p90_s: Spread
    p99_s: Spread
    p999_s: Spread
    worst_s: float
    histogram: dict[int, int]
    """Latencies of all rounds, by bucket of `compare.report.histogram`."""
    cpu_us: dict[str, Spread]
    """CPU time a request, by role."""
    kernel_us: Spread = Spread(values=())
    """The part of it that was spent in the kernel, of all roles together."""
    limited: bool
    """The load generator was the limit, not the subject."""
    rate: float = 0.0
    """Requests asked for in a second, of a constant-rate load."""
    generator: str = "own"
    """What made the load: own, or wrk."""


class HeldResult(FrozenModel):
    """What idle connections cost that are held open."""

    connections: int
    fds: dict[str, float]
    """Descriptors per connection, by role."""
    memory: dict[str, float]
    """Bytes per connection, by role."""
    ephemeral_ports: float
    """Per connection."""
    curve: tuple[tuple[int, dict[str, int]], ...]
    """Open connections, and the descriptors of each role at that moment."""


class FaultResult(FrozenModel):
    """The effect of a fault on clients."""

    requests: int
    failed: int
    full_capacity_s: float | None
    """From the fault until every worker served again. None: not within the given time."""
    worst_s: float


class ScalingResult(FrozenModel):
    """A load on the same subject with another number of workers."""

    requests_per_s: Spread
    cpu_us: Spread
    """Of all roles."""
    limited: bool


class Subject(FrozenModel):
    """One column of the table: a scheme, or an address that somebody else serves."""

    name: str
    """"ports/http", "handoff", "nginx+uvicorn", or the address."""
    scheme: str
    """ports, handoff, shared, reuseport, or "" for a peer and an address."""
    mode: str
    """http, tcp, or "" for a peer and an address."""
    loads: dict[LoadKind, LoadResult] = Field(default_factory=dict)
    held: HeldResult | None = None
    split: dict[str, int] = Field(default_factory=dict)
    """Requests or connections that each worker had, by slot."""
    split_of: str = "connections"
    """What `split` counts: requests or connections."""
    jain: float | None = None
    """Jain's fairness index of `split`: 1 is even, 1/n is all to one."""
    faults: dict[FaultKind, FaultResult] = Field(default_factory=dict)
    scaling: dict[int, ScalingResult] = Field(default_factory=dict)
    """Of the keep-alive load, by number of workers."""
    setup: str = ""
    """The configuration and the commands of a peer."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""


class Noise(FrozenModel):
    """What the machine did before the comparison, with nothing of ours running."""

    stolen: float
    """Share of a core that a process which only computes did not get, on average over cores."""
    varies: float
    """By how much the CPU time of equal pieces of work differs: half of the range of the middle
    80 %, as a share of their median."""
    late_s: float
    """How late a sleeping process was woken: 99 % of the time no later than that."""

    @property
    def share(self) -> float:
        """What a difference has to exceed."""
        return max(self.stolen, self.varies)


class Verification(FrozenModel):
    """The same load on the same subject from our own generator and from wrk, in turns."""

    subject: str
    kind: LoadKind
    own: Spread
    """Requests a second, a value for each turn."""
    wrk: Spread
    own_cpu_us: Spread = Spread(values=())
    """CPU time a request of the generator itself, a value for each turn."""
    wrk_cpu_us: Spread = Spread(values=())


class Comparison(FrozenModel):
    """One run of `penstock compare`."""

    format: int = FORMAT
    penstock: str
    """Version."""
    build: str = ""
    """Of the data path: "compiled" or "pure Python". "": an earlier format did not say."""
    started: str
    """ISO 8601, UTC."""
    command: str
    machine: dict[str, str]
    """cpu, cores, memory, kernel, python, uvloop, limits…"""
    config: str
    """TOML: exactly what was run, except for the scheme."""
    workers: int
    rounds: int
    """That were measured."""
    seconds: float
    """Of one load in one round."""
    quick: bool
    interrupted: bool
    """Ended by Ctrl-C: what is missing was not measured."""
    access_log: bool = False
    """Did all subjects write one?"""
    noise: Noise | None = None
    verification: tuple[Verification, ...] = ()
    notes: tuple[str, ...] = ()
    """Schemes that were not compared, and measurements that there was no time for."""
    subjects: tuple[Subject, ...]
