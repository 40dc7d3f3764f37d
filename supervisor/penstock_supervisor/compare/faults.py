"""Breaks a subject while clients come at a constant rate, and sees what they notice.

The load asks for less than the subject can do, so that whatever fails or is slow does so
because of the fault. Full capacity is there again when every worker is in rotation, as
/status says; the load may have ended by then, and is not waited with. A worker that was
stopped is always continued.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare import plan, resource_usage
from penstock_supervisor.compare.load.driver import Job, Report, drive
from penstock_supervisor.compare.report.result import FaultKind, FaultResult
from penstock_supervisor.compare.subject import RunningSubject, SubjectError, all_up

_POLL_S: Final = 0.05
_FLOWING_S: Final = 5.0
"""For the load to begin."""

Rows = list[dict[str, Any]]


async def fault(kind: FaultKind, subject: RunningSubject, job: Job) -> FaultResult:
    """One fault under the load of `job`. SubjectError."""
    before = await subject.workers()
    if not all(row.get("pid") for row in before):
        raise SubjectError("not every worker runs, so none is taken away")
    loop = asyncio.get_running_loop()
    reports: list[Report] = []

    async def clients() -> None:
        reports.append(await drive(job))

    took: float | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(clients())
            await _flowing(subject.address)
            began = loop.time()
            await _break(kind, subject, before)
            until = began + job.seconds + plan.GRACE_S
            if await _restored(subject, condition(kind, before), until):
                took = loop.time() - began
    except ExceptionGroup as group:
        # One of both failed and the other was cancelled; the first is the reason.
        raise group.exceptions[0] from None
    (report,) = reports
    return FaultResult(
        requests=report.requests,
        failed=sum(report.errors.values()),
        full_capacity_s=took,
        worst_s=report.worst_s,
    )


async def _flowing(address: str) -> None:
    """Return when clients are connected, and after a calm moment."""
    port = parse_address(address).port
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLOWING_S if port else 1.0):
            while True:
                if port and resource_usage.connected(port):
                    break
                await asyncio.sleep(_POLL_S)
    await asyncio.sleep(plan.CALM_BEFORE_S)


async def _break(kind: FaultKind, subject: RunningSubject, rows: Rows) -> None:
    pid = rows[-1]["pid"]
    match kind:
        case "kill":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        case "roll":
            subject.signal(signal.SIGHUP)
        case "block":
            # With all that it started: a shell that waits for the program is not the worker.
            try:
                _signal_group(pid, signal.SIGSTOP)
                await asyncio.sleep(plan.BLOCKED_S)
            finally:
                _signal_group(pid, signal.SIGCONT)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def condition(kind: FaultKind, before: Rows) -> Callable[[Rows], bool]:
    """Is everybody there, and as far as somebody was replaced, somebody new?"""
    if kind == "block":
        return all_up
    gone = {row["pid"] for row in (before if kind == "roll" else before[-1:])}
    return lambda rows: all_up(rows) and not any(row["pid"] in gone for row in rows)


async def _restored(subject: RunningSubject, is_back: Callable[[Rows], bool], until: float) -> bool:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        if is_back(await subject.workers()):
            return True
        await asyncio.sleep(_POLL_S)
    return False
