"""A whole comparison: starts every subject, measures in the order of the plan, stops them.

All subjects stay up for the whole run, and only the measured one is given work. An idle one
costs a health check every few seconds, which is far below what can be measured; starting
each anew for every pass would cost more time than measuring, and would measure cold
processes. What it takes is their memory.

A measurement that fails costs its figure and leaves a note; the others go on. Ctrl-C ends
what is under way, keeps what was measured, and stops everything; again: at once.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, Protocol

from penstock_supervisor.compare import faults, machine, measure, plan
from penstock_supervisor.compare.load.driver import Job
from penstock_supervisor.compare.load.wrk import WrkError
from penstock_supervisor.compare.plan import Measures, Step
from penstock_supervisor.compare.report.measurements import Findings
from penstock_supervisor.compare.report.result import Comparison, FaultKind, LoadKind
from penstock_supervisor.compare.subject import Outside, RunningSubject, SubjectError
from penstock_supervisor.compare.variants import Variant

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_FAULT_CONNECTIONS: Final = 16
_BROKEN: Final = (SubjectError, WrkError, OSError, TimeoutError)
"""What may happen to one measurement without being a mistake of ours."""
_LEFT_OUT: Final = {
    "held": "held connections",
    "kill": "a worker killed",
    "block": "a worker blocked",
    "roll": "all workers replaced",
}


class CompareError(Exception):
    """There is nothing to show. One line for people."""


class Watcher(Protocol):
    """Who is told what happens."""

    def begin(self, seconds: float) -> None:
        """About how long everything takes."""

    def now(self, text: str) -> None: ...

    def done(self, seconds: float) -> None:
        """That much of it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to compare, and how."""

    variants: Sequence[Variant]
    others: Sequence[str]
    """Addresses that somebody else serves."""
    measures: Measures
    path: str
    wrk: str
    """Its path, or empty: our own generator."""
    workers: int
    config: str
    """TOML, for the reader."""
    command: str
    notes: tuple[str, ...]
    verbose: bool = False


async def compare(order: Order, watcher: Watcher) -> Comparison:
    """Measure. CompareError if no subject could be measured at all."""
    run = _Run(order, watcher)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, run.interrupt)
    try:
        return await run.run()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class _Run:
    """One comparison under way."""

    def __init__(self, order: Order, watcher: Watcher) -> None:
        self._order = order
        self._watcher = watcher
        self._generator = measure.Generator(
            most=len(os.sched_getaffinity(0)) // 2, program=order.wrk
        )
        self._ours = {
            one.name: RunningSubject(one, verbose=order.verbose) for one in order.variants
        }
        self._others = {address: Outside(address) for address in order.others}
        self._findings = {
            **{one.name: Findings(one.name, one.service.scheme, one.service.mode)
               for one in order.variants},
            **{address: Findings(address) for address in order.others},
        }  # fmt: skip
        self._useless: dict[str, str] = {}
        self._notes = dict.fromkeys(order.notes)
        self._rates: dict[float, float] = {}
        self._task: asyncio.Task[Comparison] | None = None
        self._interrupted = False
        self._leaving = False

    def interrupt(self) -> None:
        """End early; called again, or while leaving, at once."""
        if self._leaving or self._interrupted:
            for one in self._ours.values():
                one.signal(signal.SIGTERM)
        elif self._task is not None:
            self._task.cancel()
        self._interrupted = True

    async def run(self) -> Comparison:
        self._task = task = asyncio.current_task()
        begun, known = datetime.now(UTC), machine.described()
        try:
            try:
                await self._start()
                await self._measure()
            finally:
                self._leaving = True
                self._watcher.now("stopping")
                await asyncio.gather(*(one.stop() for one in self._ours.values()))
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            assert task is not None
            task.uncancel()
        return self._result(begun.isoformat(timespec="seconds"), known)

    async def _start(self) -> None:
        expected = plan.START_S + sum(map(plan.seconds, self._passes()))
        self._watcher.begin(expected + plan.STOP_S)
        self._watcher.now("starting every subject")
        self._begun_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._started(one) for one in self._ours.values()))
        self._watcher.now("warming up")
        await asyncio.gather(*(self._warm(one) for one in self._working()))
        self._watcher.done(plan.START_S)
        if not self._working():
            name, why = next(iter(self._useless.items()))
            raise CompareError(f"nothing can be compared; {name}: {why}")

    async def _started(self, subject: RunningSubject) -> None:
        try:
            await subject.start()
        except _BROKEN as error:
            self._drop(subject.name, f"cannot be started: {error}")

    async def _warm(self, subject: measure.Target) -> None:
        """Only who answers is measured."""
        path = self._order.path
        try:
            report = await measure.answers(subject, path, self._order.measures.warmup_s)
        except _BROKEN as error:
            self._drop(subject.name, f"cannot be loaded: {error}")
            return
        if not report.requests:
            errors = ", ".join(f"{kind} {count}" for kind, count in report.errors.items())
            why = f"no GET {path} was answered with success"
            self._drop(subject.name, f"{why} ({errors})" if errors else why)

    def _drop(self, name: str, why: str) -> None:
        self._useless[name] = why
        self._findings[name].note(why)

    def _working(self) -> list[measure.Target]:
        everybody: list[measure.Target] = [*self._ours.values(), *self._others.values()]
        return [one for one in everybody if one.name not in self._useless]

    def _passes(self) -> tuple[plan.Pass, ...]:
        working = [one.name for one in self._working()]
        # Upstreams are run by somebody else, even behind a proxy of ours.
        ours = [n for n in working if n in self._ours and not self._ours[n].service.upstreams]
        others = [name for name in working if name not in ours]
        return plan.passes(ours, others, self._order.measures)

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        for one in self._passes():
            if not plan.fits(one, loop.time() - self._begun_at, self._order.measures):
                what = _LEFT_OUT.get(one[0].kind, one[0].kind)
                self._notes[f"not measured: {what}; there was no time for it"] = None
                continue
            for step in one:
                self._watcher.now(_said(step, self._order.measures.rounds))
                await self._step(step)
                self._watcher.done(step.seconds)

    async def _step(self, step: Step) -> None:
        findings = self._findings[step.subject]
        try:
            if kind := plan.load_of(step.kind):
                await self._load(kind, step.subject)
            elif broken := plan.fault_of(step.kind):
                await self._fault(broken, step.subject)
            else:
                steps = plan.growth(self._order.measures.held)
                await measure.hold(self._target(step.subject), self._order.path, steps, findings)
        except PermissionError:
            findings.note("its processes may not be looked at: no descriptors and memory")
        except _BROKEN as error:
            findings.note(f"{_LEFT_OUT.get(step.kind, step.kind)}: {error}")

    async def _load(self, kind: LoadKind, name: str) -> None:
        measures = self._order.measures
        target, findings = self._target(name), self._findings[name]
        job = Job(
            address=target.address,
            path=self._order.path,
            kind=kind,
            connections=measures.connections,
            seconds=measures.seconds,
            rate=self._rate(plan.BUSY) if kind == "rate" else 0.0,
        )
        await measure.load(target, job, self._generator, findings)
        if name in self._others and not await target.roles():
            findings.note("its processes are not to be seen: no CPU, descriptors and memory")

    async def _fault(self, kind: FaultKind, name: str) -> None:
        measures, subject = self._order.measures, self._ours[name]
        job = Job(
            address=subject.address,
            path=self._order.path,
            kind="rate",
            connections=min(_FAULT_CONNECTIONS, measures.connections),
            seconds=measures.fault_s[kind],
            rate=self._rate(plan.CALM),
        )
        self._findings[name].faults[kind] = await faults.fault(kind, subject, job)

    def _rate(self, share: float) -> float:
        """Found once, so that every subject and every round has the same."""
        if share not in self._rates:
            found = [one.throughput("keepalive") for one in self._findings.values()]
            self._rates[share] = plan.rate(found, share)
        return self._rates[share]

    def _target(self, name: str) -> measure.Target:
        return self._ours.get(name) or self._others[name]

    def _result(self, started: str, known: dict[str, str]) -> Comparison:
        order = self._order
        return Comparison(
            penstock=version("penstock"),
            started=started,
            command=order.command,
            machine=known,
            config=order.config,
            workers=order.workers,
            rounds=order.measures.rounds,
            seconds=order.measures.seconds,
            quick=order.measures.quick,
            interrupted=self._interrupted,
            notes=tuple(self._notes),
            subjects=tuple(one.subject() for one in self._findings.values()),
        )


def _said(step: Step, rounds: int) -> str:
    words = {
        "keepalive": "keep-alive load", "connect": "a connection per request",
        "rate": "constant rate", **_LEFT_OUT,
    }  # fmt: skip
    where = f"round {step.round + 1} of {rounds}, " if plan.is_load(step.kind) else ""
    return f"{where}{words[step.kind]}: {step.subject}"
