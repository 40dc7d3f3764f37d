"""Causes a fault in a subject under constant-rate load, and measures its effect on clients.

The load is less than the subject can serve, so failures and slow answers come from the fault.
Full capacity is back when every worker is in rotation, as /status says. The load may end before
that. A worker that was stopped is always continued.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare import plan
from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.load.driver import Job, LoadReport, drive
from penstock_supervisor.compare.report.result import FaultKind, FaultResult
from penstock_supervisor.compare.subject import RunningSubject, SubjectError, all_up

_POLL_S: Final = 0.05
_LOAD_START_S: Final = 5.0
"""For the load to begin."""

Rows = list[dict[str, Any]]


async def fault(kind: FaultKind, subject: RunningSubject, job: Job) -> FaultResult:
    """Cause one fault under the load of `job`. SubjectError."""
    rows_before = await subject.workers()
    if not all(row.get("pid") for row in rows_before):
        raise SubjectError("not every worker runs, so none is taken away")
    loop = asyncio.get_running_loop()
    reports: list[LoadReport] = []

    async def make_load() -> None:
        reports.append(await drive(job))

    full_capacity_s: float | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(make_load())
            await _load_started(subject.address)
            started_at = loop.time()
            await _cause(kind, subject, rows_before)
            deadline = started_at + job.seconds + plan.RECOVERY_S
            if await _wait_until(subject, recovered(kind, rows_before), deadline):
                full_capacity_s = loop.time() - started_at
    except ExceptionGroup as group:
        # One of the two tasks failed, and the other was cancelled: the first has the reason.
        raise group.exceptions[0] from None
    (report,) = reports
    return FaultResult(
        requests=report.requests,
        failed=sum(report.errors.values()),
        full_capacity_s=full_capacity_s,
        worst_s=report.worst_s,
    )


async def _load_started(address: str) -> None:
    """Wait until clients are connected, and a moment more."""
    port = parse_address(address).port
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOAD_START_S if port else 1.0):
            while True:
                if port and resource_usage.clients(port):
                    break
                await asyncio.sleep(_POLL_S)
    await asyncio.sleep(plan.LOAD_BEFORE_FAULT_S)


async def _cause(kind: FaultKind, subject: RunningSubject, rows: Rows) -> None:
    pid = rows[-1]["pid"]
    match kind:
        case "kill":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        case "roll":
            subject.signal(signal.SIGHUP)
        case "block":
            # The whole process group: the worker may be a shell that waits for the program.
            try:
                _signal_group(pid, signal.SIGSTOP)
                await asyncio.sleep(plan.BLOCKED_S)
            finally:
                _signal_group(pid, signal.SIGCONT)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def recovered(kind: FaultKind, rows_before: Rows) -> Callable[[Rows], bool]:
    """The test for full capacity: every worker is up, and replaced ones are new processes."""
    if kind == "block":
        return all_up
    replaced = {row["pid"] for row in (rows_before if kind == "roll" else rows_before[-1:])}
    return lambda rows: all_up(rows) and not any(row["pid"] in replaced for row in rows)


async def _wait_until(
    subject: RunningSubject, condition: Callable[[Rows], bool], deadline: float
) -> bool:
    """False: the condition was not true by the deadline."""
    loop = asyncio.get_running_loop()
    while loop.time() < deadline:
        if condition(await subject.workers()):
            return True
        await asyncio.sleep(_POLL_S)
    return False
