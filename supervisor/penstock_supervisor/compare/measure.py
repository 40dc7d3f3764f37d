"""Measures one subject once: under a load, or with idle connections.

Owns the choice of the load generator, and how many processes it gets. The generator itself is
our own, or wrk. The CPU time of the subject's processes is read from /proc before and after the
load. /status is not requested during the load: answering would cost the CPU time that is measured.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.host.resource_usage import CpuTime
from penstock_supervisor.compare.load import wrk
from penstock_supervisor.compare.load.driver import HeldConnections, Job, LoadReport, drive
from penstock_supervisor.compare.report.measurements import (
    Measurements,
    ResourceSample,
    Round,
    held_connections,
)
from penstock_supervisor.compare.report.result import LoadKind
from penstock_supervisor.compare.subject import Roles


class MeasuredSubject(Protocol):
    """What a subject must have to be measured."""

    name: str
    address: str

    async def roles(self) -> Roles: ...

    async def split(self) -> tuple[str, dict[str, int]]: ...

    async def outgoing_connections(self, roles: Roles) -> int: ...


class LoadGenerator:
    """Makes load with one process, and with more as soon as one turns out to be the limit."""

    def __init__(self, *, max_processes: int, wrk_path: str = "") -> None:
        """`wrk_path`: use this wrk for the loads that it can make."""
        self._max_processes = max(1, max_processes)
        self._processes = 1
        self._wrk_path = wrk_path

    async def drive(self, job: Job) -> LoadReport:
        while True:
            report = await self._drive_once(job)
            if not report.limited or self._processes >= self._max_processes:
                return report
            self._processes = min(self._max_processes, 2 * self._processes)

    def made_by(self, job: Job) -> str:
        """own or wrk."""
        return "wrk" if self._wrk_path and wrk.supports(job) else "own"

    async def _drive_once(self, job: Job) -> LoadReport:
        if self.made_by(job) == "wrk":
            return await wrk.drive(self._wrk_path, job, self._processes)
        return await drive(job, self._processes)


async def load(
    subject: MeasuredSubject, job: Job, generator: LoadGenerator, measurements: Measurements
) -> LoadReport:
    """Measure one round. SubjectError: the subject is gone."""
    roles = await subject.roles()
    counted, split_before = await subject.split()
    report, measured = await _round(roles, job, generator)
    _, split_after = await subject.split()
    measurements.add_round(job.kind, measured)
    if counts_split(job.kind):
        split = {slot: count - split_before.get(slot, 0) for slot, count in split_after.items()}
        measurements.add_split(counted, {slot: max(0, count) for slot, count in split.items()})
    return report


async def scaling(
    subject: MeasuredSubject,
    job: Job,
    generator: LoadGenerator,
    measurements: Measurements,
    workers: int,
) -> None:
    """Measure one round of a subject that runs with another number of workers."""
    _, measured = await _round(await subject.roles(), job, generator)
    measurements.add_scaling_round(workers, measured)


async def _round(roles: Roles, job: Job, generator: LoadGenerator) -> tuple[LoadReport, Round]:
    before = cpu_times(roles)
    report = await generator.drive(job)
    after = cpu_times(roles)
    return report, Round(
        requests=report.requests,
        errors=report.errors,
        seconds=report.seconds,
        histogram=report.histogram,
        worst_s=report.worst_s,
        limited=report.limited,
        cpu_s={role: after[role].total - before[role].total for role in roles},
        kernel_s=sum(after[role].kernel - before[role].kernel for role in roles),
        rate=job.rate,
        generator=generator.made_by(job),
        late=report.late,
    )


def counts_split(kind: LoadKind) -> bool:
    """Is the split across workers counted under this load?

    Only the load with many connections tells: with few, one connection more is much.
    """
    return kind == "connect"


async def hold(
    subject: MeasuredSubject, path: str, steps: tuple[int, ...], measurements: Measurements
) -> None:
    """Open more and more connections, and read descriptors and memory at each step."""
    roles = await subject.roles()
    samples = [await _sample(subject, roles, 0)]
    try:
        async with HeldConnections(subject.address, path) as connections:
            for wanted in steps:
                count = await connections.grow(wanted - samples[-1].connections)
                samples.append(await _sample(subject, roles, count))
                if count < wanted:
                    measurements.note(f"only {count} of {steps[-1]} connections could be held")
                    break
    finally:
        measurements.held = held_connections(samples)


async def _sample(subject: MeasuredSubject, roles: Roles, connections: int) -> ResourceSample:
    return ResourceSample(
        connections,
        {role: resource_usage.fds(pids) for role, pids in roles.items()},
        {role: resource_usage.rss(pids) for role, pids in roles.items()},
        await subject.outgoing_connections(roles),
    )


def cpu_times(roles: Roles) -> Mapping[str, CpuTime]:
    """CPU time so far, by role. The children of the supervisor have roles of their own."""
    return {
        role: resource_usage.own_cpu_time(pids)
        if role == "supervisor"
        else resource_usage.cpu_time(pids)
        for role, pids in roles.items()
    }


async def warm_up(subject: MeasuredSubject, path: str, seconds: float) -> LoadReport:
    """A small load that is not counted. It fills caches, and shows whether the subject works."""
    job = Job(address=subject.address, path=path, kind="keepalive", connections=4, seconds=seconds)
    async with asyncio.timeout(60 + seconds):
        return await drive(job)
