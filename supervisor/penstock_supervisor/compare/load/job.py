"""The job that a load generator gets, and the report that it returns."""

from typing import Annotated, Final

from pydantic import Field

from penstock_proxy.config import FrozenModel
from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.result import LoadKind

READY: Final = b"ready\n"
"""The first line of a generator. When all are ready they get their jobs, and begin together."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Job(FrozenModel):
    address: str
    """ "host:port", "[v6]:port" or "unix:/path"."""
    path: str = "/"
    kind: LoadKind
    connections: Annotated[int, Field(ge=1)]
    seconds: Positive
    rate: float = 0.0
    """Requests a second; only for the kind "rate"."""
    host: str = "localhost"


class LoadReport(FrozenModel):
    requests: int
    """Answered with success: 2xx and 3xx."""
    late: int = 0
    """Those of them whose response came after the end of a closed loop."""
    errors: dict[str, int]
    """Failed requests by kind: connect, no port (no local port was free), reset, timeout,
    status, protocol."""
    seconds: float
    histogram: dict[int, int]
    """Latencies of successful requests, by bucket of `compare.report.histogram`."""
    worst_s: float
    cpu_share: float
    """Of one processor, used by the busiest process."""
    limited: bool
    """The generator was the limit, not the subject."""

    @property
    def requests_per_s(self) -> float:
        return (self.requests - self.late) / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """CPU time of the generator a request, if it has one process. 0: there was no request."""
        return self.cpu_share / self.requests_per_s * 1e6 if self.requests_per_s else 0.0


def split(job: Job, processes: int) -> list[Job]:
    """A part of the job for each process. There are no more parts than connections."""
    count = max(1, min(processes, job.connections))
    return [
        job.model_copy(
            update={
                "connections": job.connections // count + (n < job.connections % count),
                "rate": job.rate / count,
            }
        )
        for n in range(count)
    ]


def merge(reports: list[LoadReport]) -> LoadReport:
    """The report of processes that worked at the same time."""
    errors: dict[str, int] = {}
    for report in reports:
        for kind, count in report.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return LoadReport(
        requests=sum(report.requests for report in reports),
        late=sum(report.late for report in reports),
        errors=errors,
        seconds=max(report.seconds for report in reports),
        histogram=histogram.merge(report.histogram for report in reports),
        worst_s=max(report.worst_s for report in reports),
        cpu_share=max(report.cpu_share for report in reports),
        limited=any(report.limited for report in reports),
    )
