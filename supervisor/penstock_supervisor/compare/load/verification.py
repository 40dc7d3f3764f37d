"""Our own load generator beside wrk: the same load on the same subject, in turns.

Two generators that see the same throughput are not a proof, but one of them that is slower takes
the processor from the subject, and its figures would be of itself. So the CPU time that each of
them takes for a request is found as well: it varies less with what else the machine does.
"""

from typing import Final

from penstock_supervisor.compare.load import wrk
from penstock_supervisor.compare.load.driver import Job, LoadReport, drive
from penstock_supervisor.compare.report.result import Spread, Verification

_TURNS: Final = 5


def expected_s(seconds: float) -> float:
    """About how long one subject takes."""
    return 2 * _TURNS * (seconds + 0.3)


async def verify(name: str, job: Job, program: str) -> Verification | None:
    """`program` is the path of wrk. None: wrk cannot make this load. WrkError, OSError."""
    if not wrk.supports(job):
        return None
    own: list[LoadReport] = []
    theirs: list[LoadReport] = []
    for turn in range(_TURNS):
        # The second one after a pause finds a warmer subject, so they take turns at that, too.
        for is_own in (True, False) if turn % 2 == 0 else (False, True):
            if is_own:
                own.append(await drive(job))
            else:
                theirs.append(await wrk.drive(program, job, 1))
    return Verification(
        subject=name,
        kind=job.kind,
        own=Spread(values=tuple(one.requests_per_s for one in own)),
        wrk=Spread(values=tuple(one.requests_per_s for one in theirs)),
        own_cpu_us=Spread(values=tuple(one.cpu_us for one in own)),
        wrk_cpu_us=Spread(values=tuple(one.cpu_us for one in theirs)),
    )
