"""What load is made, and what came of it: what is said to a generator and what it answers."""

from typing import Annotated, Final

from pydantic import Field

from penstock_proxy.config import FrozenModel
from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.result import LoadKind

READY: Final = b"ready\n"
"""What a generator says first, so that several of them begin together."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Job(FrozenModel):
    address: str
    """ "host:port", "[v6]:port" or "unix:/path"."""
    path: str = "/"
    kind: LoadKind
    connections: Annotated[int, Field(ge=1)]
    seconds: Positive
    rate: float = 0.0
    """Requests a second, of the kind "rate"."""
    host: str = "localhost"


class Report(FrozenModel):
    requests: int
    """Answered, and well: 2xx and 3xx."""
    errors: dict[str, int]
    """The others, by kind: connect, no port (none was left to connect from), reset, timeout,
    status, protocol."""
    seconds: float
    histogram: dict[int, int]
    """Latencies of the good answers, by bucket of `compare.histogram`."""
    worst_s: float
    cpu_share: float
    """Of one processor, of the busiest process."""
    limited: bool
    """The generator was the limit, not the subject."""


def split(job: Job, processes: int) -> list[Job]:
    """A part for each process; no more of them than connections."""
    count = max(1, min(processes, job.connections))
    return [
        job.model_copy(
            update={
                "connections": job.connections // count + (at < job.connections % count),
                "rate": job.rate / count,
            }
        )
        for at in range(count)
    ]


def merge(reports: list[Report]) -> Report:
    """Of processes that worked at the same time."""
    errors: dict[str, int] = {}
    for report in reports:
        for kind, count in report.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return Report(
        requests=sum(report.requests for report in reports),
        errors=errors,
        seconds=max(report.seconds for report in reports),
        histogram=histogram.merge(report.histogram for report in reports),
        worst_s=max(report.worst_s for report in reports),
        cpu_share=max(report.cpu_share for report in reports),
        limited=any(report.limited for report in reports),
    )
