"""Our own load generator beside wrk: the same load on the same subject, in turns.

Two generators that see the same throughput are not a proof, but one of them that is slower takes
the processor from the subject, and its figures would be of itself.
"""

from typing import Final

from penstock_supervisor.compare.load import wrk
from penstock_supervisor.compare.load.driver import Job, drive
from penstock_supervisor.compare.report.result import Spread, Verification

_TURNS: Final = 3


def expected_s(seconds: float) -> float:
    """About how long one subject takes."""
    return 2 * _TURNS * (seconds + 0.3)


async def verify(name: str, job: Job, program: str) -> Verification | None:
    """`program` is the path of wrk. None: wrk cannot make this load. WrkError, OSError."""
    if not wrk.supports(job):
        return None
    own: list[float] = []
    theirs: list[float] = []
    for _ in range(_TURNS):
        for report, values in ((await drive(job), own), (await wrk.drive(program, job, 1), theirs)):
            values.append(report.requests / report.seconds if report.seconds else 0.0)
    return Verification(
        subject=name, kind=job.kind, own=Spread(values=tuple(own)), wrk=Spread(values=tuple(theirs))
    )
