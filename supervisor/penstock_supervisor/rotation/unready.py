"""Which workers are not ready for so long that another process has to take their place?

Not ready is who fails its health checks, or never passed one. Being ejected for its traffic does
not count, and neither does a process that hangs: that is judged elsewhere (`heartbeat`).

Never more than what is their own fault. While fewer than `ejection.panic` of a service's workers
serve, or none at all, something that they share is down, such as a database. Then nobody is
restarted, and everybody's time begins again: they come back one by one, and the last ones must
not be punished for it. So the only worker of a service is never restarted for its checks.

A worker that alternates is not ready *without a break* for as long as its checks fail: each
time that it is ready its time begins again. No I/O; `now` is any monotonic clock, in seconds.
"""

from collections.abc import Container, Hashable, Sequence
from typing import NamedTuple

from penstock_supervisor.children.plan import MemberKey


class WorkerFacts(NamedTuple):
    """One worker that runs."""

    member: MemberKey
    process: Hashable
    """Another one of the same member begins anew."""
    alive: bool
    ready: bool
    """It passes its checks, or did so for a moment since the last look."""
    serves: bool
    """It is in the rotation."""


class Unready:
    """Since when each worker of a run is not ready."""

    def __init__(self) -> None:
        self._since: dict[MemberKey, tuple[Hashable, float]] = {}

    def begin_again(self) -> None:
        """The supervisor did not run: everybody's time begins again."""
        self._since.clear()

    def keep(self, members: Container[MemberKey]) -> None:
        """Forget all but these: the others are gone."""
        self._since = {key: since for key, since in self._since.items() if key in members}

    def overdue(
        self, workers: Sequence[WorkerFacts], restart_after_s: float, panic: float, now: float
    ) -> list[tuple[MemberKey, float]]:
        """The workers of one service that should be restarted, and for how long each of them has
        not been ready, the longest first. `workers`: all of its workers that run."""
        serving = sum(worker.serves for worker in workers)
        # Rounded down a little: 0.29 * 100 is 28.999… in binary.
        shared_fault = not serving or serving < panic * len(workers) - 1e-9
        overdue = []
        for worker in workers:
            if worker.ready or not worker.alive or shared_fault:
                self._since.pop(worker.member, None)
                continue
            process, since = self._since.get(worker.member, (None, now))
            if process != worker.process:
                since = now
            self._since[worker.member] = worker.process, since
            if now - since >= restart_after_s:
                overdue.append((worker.member, now - since))
        return sorted(overdue, key=lambda one: -one[1])
