"""Measures one subject once: a load, or connections that are held.

Owns the choice of the generator and how many processes it gets; the generator itself is
`load`, or wrk. What the processes used is read directly before and after, from outside: a
subject is not asked while it is loaded, because answering costs what is being measured.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from penstock_supervisor.compare import resource_usage
from penstock_supervisor.compare.load import wrk
from penstock_supervisor.compare.load.driver import Holder, Job, Report, drive
from penstock_supervisor.compare.report.measurements import Findings, Round, Sample, held
from penstock_supervisor.compare.report.result import LoadKind
from penstock_supervisor.compare.subject import Roles


class Target(Protocol):
    """A subject, as far as it is measured."""

    name: str
    address: str

    async def roles(self) -> Roles: ...

    async def split(self) -> tuple[str, dict[str, int]]: ...

    async def outgoing(self, roles: Roles) -> int: ...


class Generator:
    """Makes load with one process, and with more once one was found to be the limit."""

    def __init__(self, *, most: int, program: str = "") -> None:
        """`program`: the path of wrk, for the loads that it can make."""
        self._most = max(1, most)
        self._processes = 1
        self._program = program

    async def drive(self, job: Job) -> Report:
        while True:
            report = await self._once(job)
            if not report.limited or self._processes >= self._most:
                return report
            self._processes = min(self._most, 2 * self._processes)

    async def _once(self, job: Job) -> Report:
        if self._program and wrk.can(job):
            return await wrk.drive(self._program, job, self._processes)
        return await drive(job, self._processes)


async def load(target: Target, job: Job, generator: Generator, findings: Findings) -> Report:
    """One round. SubjectError when the subject is gone."""
    roles = await target.roles()
    what, before = await target.split()
    used = cpu(roles)
    report = await generator.drive(job)
    now = cpu(roles)
    _, after = await target.split()
    findings.loaded(
        job.kind,
        Round(
            requests=report.requests,
            errors=report.errors,
            seconds=report.seconds,
            histogram=report.histogram,
            worst_s=report.worst_s,
            limited=report.limited,
            cpu_s={role: now[role] - used[role] for role in roles},
            rate=job.rate,
        ),
    )
    if counts_split(job.kind):
        share = {slot: count - before.get(slot, 0) for slot, count in after.items()}
        findings.shared(what, {slot: max(0, count) for slot, count in share.items()})
    return report


def counts_split(kind: LoadKind) -> bool:
    """Many connections: of the few of another load, one more or less is half of the picture."""
    return kind == "connect"


async def hold(target: Target, path: str, steps: tuple[int, ...], findings: Findings) -> None:
    """Open more and more connections, and see what the processes have at each point."""
    roles = await target.roles()
    samples = [await _sample(target, roles, 0)]
    try:
        async with Holder(target.address, path) as holder:
            for wanted in steps:
                count = await holder.grow(wanted - samples[-1].connections)
                samples.append(await _sample(target, roles, count))
                if count < wanted:
                    findings.note(f"only {count} of {steps[-1]} connections could be held")
                    break
    finally:
        findings.held = held(samples)


async def _sample(target: Target, roles: Roles, connections: int) -> Sample:
    return Sample(
        connections,
        {role: resource_usage.fds(pids) for role, pids in roles.items()},
        {role: resource_usage.rss(pids) for role, pids in roles.items()},
        await target.outgoing(roles),
    )


def cpu(roles: Roles) -> Mapping[str, float]:
    """Processor time so far, by role. A supervisor's children are other roles."""
    return {
        role: resource_usage.own_cpu_s(pids) if role == "supervisor" else resource_usage.cpu_s(pids)
        for role, pids in roles.items()
    }


async def answers(target: Target, path: str, seconds: float) -> Report:
    """A little load before anything counts: caches fill, and it is seen whether it works."""
    job = Job(address=target.address, path=path, kind="keepalive", connections=4, seconds=seconds)
    async with asyncio.timeout(60 + seconds):
        return await drive(job)
