"""Runs a comparison: starts every subject, measures in the order of the plan, stops them.

All subjects run all the time, and only the measured one has load. An idle one makes a health
check every few seconds, which is too little to be measured. To start each of them anew for every
pass would take longer than the measurements, and would measure cold processes. The price is the
memory of all subjects.

If a measurement fails, its figure is missing and a note is left; the others go on. Ctrl-C ends
the current measurement, keeps what was measured, and stops everything. A second one stops at
once.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from penstock_supervisor import release
from penstock_supervisor.compare import faults, machine, measure, plan
from penstock_supervisor.compare.load.driver import Job
from penstock_supervisor.compare.load.wrk import WrkError
from penstock_supervisor.compare.plan import Measures, PlanStep
from penstock_supervisor.compare.report.measurements import Measurements
from penstock_supervisor.compare.report.result import Comparison, FaultKind, LoadKind
from penstock_supervisor.compare.subject import ExternalSubject, RunningSubject, SubjectError
from penstock_supervisor.compare.variants import Variant

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_FAULT_CONNECTIONS: Final = 16
_MEASUREMENT_ERRORS: Final = (SubjectError, WrkError, OSError, TimeoutError)
"""What may go wrong with one measurement without being a bug of ours."""
_PASS_NAMES: Final = {
    "held": "held connections",
    "kill": "a worker killed",
    "block": "a worker blocked",
    "roll": "all workers replaced",
}


class CompareError(Exception):
    """There is nothing to show. One line for people."""


class Progress(Protocol):
    """Shows the progress of a comparison."""

    def begin(self, seconds: float) -> None:
        """About how long everything takes."""

    def describe(self, text: str) -> None:
        """What is done now."""

    def advance(self, seconds: float) -> None:
        """So much of the time has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSpec:
    """What to compare, and how."""

    variants: Sequence[Variant]
    others: Sequence[str]
    """Addresses that somebody else serves."""
    measures: Measures
    path: str
    wrk: str
    """The path of wrk; "" for our own generator."""
    workers: int
    config: str
    """TOML, for readers of the result."""
    command: str
    notes: tuple[str, ...]
    verbose: bool = False


async def compare(spec: ComparisonSpec, progress: Progress) -> Comparison:
    """Measure. CompareError: no subject at all could be measured."""
    run = _Run(spec, progress)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, run.interrupt)
    try:
        return await run.run()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class _Run:
    """One comparison in progress."""

    def __init__(self, spec: ComparisonSpec, progress: Progress) -> None:
        self._spec = spec
        self._progress = progress
        self._generator = measure.LoadGenerator(
            max_processes=len(os.sched_getaffinity(0)) // 2, wrk_path=spec.wrk
        )
        self._ours = {
            variant.name: RunningSubject(variant, verbose=spec.verbose) for variant in spec.variants
        }
        self._others = {address: ExternalSubject(address) for address in spec.others}
        self._measurements = {
            **{one.name: Measurements(one.name, one.service.scheme, one.service.mode)
               for one in spec.variants},
            **{address: Measurements(address) for address in spec.others},
        }  # fmt: skip
        self._dropped: dict[str, str] = {}
        """Subjects that do not work, and why."""
        self._notes = dict.fromkeys(spec.notes)
        self._rates: dict[float, float] = {}
        self._task: asyncio.Task[Comparison] | None = None
        self._interrupted = False
        self._stopping = False

    def interrupt(self) -> None:
        """End early. A second call, or one while everything stops, ends at once."""
        if self._stopping or self._interrupted:
            for subject in self._ours.values():
                subject.signal(signal.SIGTERM)
        elif self._task is not None:
            self._task.cancel()
        self._interrupted = True

    async def run(self) -> Comparison:
        self._task = task = asyncio.current_task()
        started, machine_facts = datetime.now(UTC), machine.describe()
        try:
            try:
                await self._start()
                await self._measure()
            finally:
                self._stopping = True
                self._progress.describe("stopping")
                await asyncio.gather(*(subject.stop() for subject in self._ours.values()))
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            assert task is not None
            task.uncancel()
        return self._result(started.isoformat(timespec="seconds"), machine_facts)

    async def _start(self) -> None:
        expected = plan.START_S + sum(map(plan.seconds, self._passes()))
        self._progress.begin(expected + plan.STOP_S)
        self._progress.describe("starting every subject")
        self._started_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._start_subject(one) for one in self._ours.values()))
        self._progress.describe("warming up")
        await asyncio.gather(*(self._warm_up(one) for one in self._working()))
        self._progress.advance(plan.START_S)
        if not self._working():
            name, why = next(iter(self._dropped.items()))
            raise CompareError(f"nothing can be compared; {name}: {why}")

    async def _start_subject(self, subject: RunningSubject) -> None:
        try:
            await subject.start()
        except _MEASUREMENT_ERRORS as error:
            self._drop(subject.name, f"cannot be started: {error}")

    async def _warm_up(self, subject: measure.MeasuredSubject) -> None:
        """Drop a subject that does not answer with success."""
        path = self._spec.path
        try:
            report = await measure.warm_up(subject, path, self._spec.measures.warmup_s)
        except _MEASUREMENT_ERRORS as error:
            self._drop(subject.name, f"cannot be loaded: {error}")
            return
        if not report.requests:
            errors = ", ".join(f"{kind} {count}" for kind, count in report.errors.items())
            why = f"no GET {path} was answered with success"
            self._drop(subject.name, f"{why} ({errors})" if errors else why)

    def _drop(self, name: str, why: str) -> None:
        self._dropped[name] = why
        self._measurements[name].note(why)

    def _working(self) -> list[measure.MeasuredSubject]:
        subjects: list[measure.MeasuredSubject] = [*self._ours.values(), *self._others.values()]
        return [subject for subject in subjects if subject.name not in self._dropped]

    def _passes(self) -> tuple[plan.Pass, ...]:
        working = [subject.name for subject in self._working()]
        # Upstreams are run by somebody else, even behind a proxy of ours.
        ours = [n for n in working if n in self._ours and not self._ours[n].service.upstreams]
        others = [name for name in working if name not in ours]
        return plan.passes(ours, others, self._spec.measures)

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        for steps in self._passes():
            if not plan.fits(steps, loop.time() - self._started_at, self._spec.measures):
                name = _PASS_NAMES.get(steps[0].kind, steps[0].kind)
                self._notes[f"not measured: {name}; there was no time for it"] = None
                continue
            for step in steps:
                self._progress.describe(_description(step, self._spec.measures.rounds))
                await self._step(step)
                self._progress.advance(step.seconds)

    async def _step(self, step: PlanStep) -> None:
        measurements = self._measurements[step.subject]
        try:
            if load_kind := plan.load_of(step.kind):
                await self._load(load_kind, step.subject)
            elif fault_kind := plan.fault_of(step.kind):
                await self._fault(fault_kind, step.subject)
            else:
                steps = plan.held_steps(self._spec.measures.held)
                subject = self._subject(step.subject)
                await measure.hold(subject, self._spec.path, steps, measurements)
        except PermissionError:
            measurements.note("its processes may not be looked at: no descriptors and memory")
        except _MEASUREMENT_ERRORS as error:
            measurements.note(f"{_PASS_NAMES.get(step.kind, step.kind)}: {error}")

    async def _load(self, kind: LoadKind, name: str) -> None:
        measures = self._spec.measures
        subject, measurements = self._subject(name), self._measurements[name]
        job = Job(
            address=subject.address,
            path=self._spec.path,
            kind=kind,
            connections=measures.connections,
            seconds=measures.seconds,
            rate=self._rate(plan.RATE_SHARE) if kind == "rate" else 0.0,
        )
        await measure.load(subject, job, self._generator, measurements)
        if name in self._others and not await subject.roles():
            measurements.note("its processes are not to be seen: no CPU, descriptors and memory")

    async def _fault(self, kind: FaultKind, name: str) -> None:
        measures, subject = self._spec.measures, self._ours[name]
        job = Job(
            address=subject.address,
            path=self._spec.path,
            kind="rate",
            connections=min(_FAULT_CONNECTIONS, measures.connections),
            seconds=measures.fault_s[kind],
            rate=self._rate(plan.FAULT_RATE_SHARE),
        )
        self._measurements[name].faults[kind] = await faults.fault(kind, subject, job)

    def _rate(self, share: float) -> float:
        """Computed once, so that it is the same for every subject and every round."""
        if share not in self._rates:
            throughputs = [one.throughput("keepalive") for one in self._measurements.values()]
            self._rates[share] = plan.rate(throughputs, share)
        return self._rates[share]

    def _subject(self, name: str) -> measure.MeasuredSubject:
        return self._ours.get(name) or self._others[name]

    def _result(self, started: str, machine_facts: dict[str, str]) -> Comparison:
        spec = self._spec
        return Comparison(
            penstock=release.version(),
            started=started,
            command=spec.command,
            machine=machine_facts,
            config=spec.config,
            workers=spec.workers,
            rounds=spec.measures.rounds,
            seconds=spec.measures.seconds,
            quick=spec.measures.quick,
            interrupted=self._interrupted,
            notes=tuple(self._notes),
            subjects=tuple(one.subject() for one in self._measurements.values()),
        )


def _description(step: PlanStep, rounds: int) -> str:
    names = {
        "keepalive": "keep-alive load", "connect": "a connection per request",
        "rate": "constant rate", **_PASS_NAMES,
    }  # fmt: skip
    prefix = f"round {step.round + 1} of {rounds}, " if plan.is_load(step.kind) else ""
    return f"{prefix}{names[step.kind]}: {step.subject}"
