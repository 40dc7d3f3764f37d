"""Measures the same subjects with another number of workers: how throughput grows with cores.

Each number has subjects of its own, which run only meanwhile. They get the load with kept
connections, because a connection for each request measures the kernel more than the workers.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock_supervisor.compare import measure
from penstock_supervisor.compare.load.driver import Job
from penstock_supervisor.compare.measure import LoadGenerator
from penstock_supervisor.compare.plan import OVERHEAD_S, START_S, STOP_S, Measures
from penstock_supervisor.compare.report.measurements import Measurements
from penstock_supervisor.compare.steps import MEASUREMENT_ERRORS
from penstock_supervisor.compare.subject import StartedSubject

ROUNDS: Final = 3


def expected_s(subjects: int, measures: Measures) -> float:
    """About how long one number of workers takes."""
    return START_S + STOP_S + ROUNDS * subjects * (measures.seconds + OVERHEAD_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRun:
    """The subjects with one number of workers."""

    workers: int
    subjects: Mapping[str, StartedSubject]
    """By name; the measurements have the same names."""

    async def measure(
        self,
        measures: Measures,
        path: str,
        generator: LoadGenerator,
        measurements: Mapping[str, Measurements],
    ) -> None:
        """A subject that fails has a note, and the others go on."""
        failed: set[str] = set()

        async def start(name: str) -> None:
            try:
                await self.subjects[name].start()
                await measure.warm_up(self.subjects[name], path, measures.warmup_s)
            except MEASUREMENT_ERRORS as error:
                failed.add(name)
                measurements[name].note(f"with {self.workers} workers: {error}")

        try:
            await asyncio.gather(*map(start, self.subjects))
            for turn in range(ROUNDS):
                names = [name for name in self.subjects if name not in failed]
                for name in (*names[turn:], *names[:turn]):
                    await self._load(name, measures, path, generator, measurements[name])
        finally:
            await asyncio.gather(*(one.stop() for one in self.subjects.values()))

    async def _load(
        self,
        name: str,
        measures: Measures,
        path: str,
        generator: LoadGenerator,
        measurements: Measurements,
    ) -> None:
        subject = self.subjects[name]
        job = Job(
            address=subject.address, path=path, kind="keepalive",
            connections=measures.connections, seconds=measures.seconds,
        )  # fmt: skip
        try:
            await measure.scaling(subject, job, generator, measurements, self.workers)
        except MEASUREMENT_ERRORS as error:
            measurements.note(f"with {self.workers} workers: {error}")
