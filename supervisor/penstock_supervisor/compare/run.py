"""Runs a comparison: starts every subject, measures in the order of the plan, stops them.

The noise of the machine is measured first, when nothing of ours runs. Then all subjects run all
the time, and only the measured one has load. An idle one makes a health check every few seconds,
which is too little to be measured. To start each of them anew for every pass would take longer
than the measurements, and would measure cold processes. The price is the memory of all subjects.

Rounds end when they tell the subjects apart as well as more of them would, or when the time is
up. Ctrl-C ends the current measurement, keeps what was measured, and stops everything. A second
one stops at once.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from penstock_supervisor import release
from penstock_supervisor.compare import measure, plan, scaling
from penstock_supervisor.compare.host import machine, noise
from penstock_supervisor.compare.load import verification
from penstock_supervisor.compare.peers.peer import Peer
from penstock_supervisor.compare.plan import Measures, Pass, Plan
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.measurements import Measurements
from penstock_supervisor.compare.report.result import Comparison, LoadKind, Noise, Verification
from penstock_supervisor.compare.scaling import ScalingRun
from penstock_supervisor.compare.steps import MEASUREMENT_ERRORS, PASS_NAMES, Steps, description
from penstock_supervisor.compare.subject import (
    ExternalSubject,
    RunningSubject,
    StartedSubject,
)
from penstock_supervisor.compare.variants import Variant

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class CompareError(Exception):
    """There is nothing to show. One line for people."""


class Progress(Protocol):
    """Shows the progress of a comparison."""

    def begin(self, least_s: float, most_s: float) -> None:
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
    peers: Sequence[Peer] = ()
    measures: Measures
    path: str
    wrk: str
    """The path of wrk; "" for our own generator."""
    workers: int
    config: str
    """TOML, for readers of the result."""
    command: str
    notes: tuple[str, ...]
    access_log: bool = False
    verify_with: str = ""
    """The path of a wrk to hold our own generator against. "": do not."""
    scaled: Mapping[int, tuple[Sequence[Variant], Sequence[Peer]]] = field(default_factory=dict)
    """The same variants and peers with other numbers of workers."""
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
        self._started = self._to_start(spec.variants, spec.peers)
        self._scaling = [
            ScalingRun(workers=workers, subjects=self._to_start(*subjects))
            for workers, subjects in spec.scaled.items()
        ]
        self._others = {address: ExternalSubject(address) for address in spec.others}
        self._measurements = {
            **{one.name: Measurements(one.name, one.service.scheme, one.service.mode)
               for one in spec.variants},
            **{one.name: Measurements(one.name, setup=one.setup) for one in spec.peers},
            **{address: Measurements(address) for address in spec.others},
        }  # fmt: skip
        self._steps = Steps(
            {**self._started, **self._others},
            self._measurements, self._generator, spec.measures, spec.path,
        )  # fmt: skip
        self._dropped: dict[str, str] = {}
        """Subjects that do not work, and why."""
        self._notes = dict.fromkeys(spec.notes)
        self._noise: Noise | None = None
        self._verification: list[Verification] = []
        self._rounds = 0
        self._begun = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = machine.describe()
        self._task: asyncio.Task[Comparison] | None = None
        self._interrupted = False
        self._stopping = False

    def _to_start(
        self, variants: Sequence[Variant], peers: Sequence[Peer]
    ) -> dict[str, StartedSubject]:
        subjects: list[StartedSubject] = [
            *(RunningSubject(variant, verbose=self._spec.verbose) for variant in variants),
            *peers,
        ]
        return {one.name: one for one in subjects}

    def interrupt(self) -> None:
        """End early. A second call, or one while everything stops, ends at once."""
        if self._stopping or self._interrupted:
            scaled = (subject for one in self._scaling for subject in one.subjects.values())
            for subject in (*self._started.values(), *scaled):
                subject.signal(signal.SIGTERM)
        elif self._task is not None:
            self._task.cancel()
        self._interrupted = True

    async def run(self) -> Comparison:
        self._task = task = asyncio.current_task()
        try:
            try:
                await self._start()
                await self._measure()
            finally:
                self._stopping = True
                self._progress.describe("stopping")
                await asyncio.gather(*(subject.stop() for subject in self._started.values()))
            self._stopping = False
            await self._measure_scaling()
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            assert task is not None
            task.uncancel()
        return self._result()

    async def _start(self) -> None:
        self._progress.begin(*self._expected_s())
        self._progress.describe("measuring how quiet the machine is")
        self._started_at = asyncio.get_running_loop().time()
        self._noise = await noise.measure()
        self._progress.describe("starting every subject")
        await asyncio.gather(*(self._start_subject(one) for one in self._started.values()))
        self._progress.describe("warming up")
        await asyncio.gather(*(self._warm_up(one) for one in self._working()))
        self._progress.advance(plan.START_S)
        if not self._working():
            name, why = next(iter(self._dropped.items()))
            raise CompareError(f"nothing can be compared; {name}: {why}")

    def _expected_s(self) -> tuple[float, float]:
        """At least, and at most."""
        todo, measures = self._plan(), self._spec.measures
        subjects = len(todo.subjects)
        more_s = len(self._scaling) * scaling.expected_s(subjects, measures)
        if self._spec.verify_with:
            more_s += subjects * 2 * verification.expected_s(measures.seconds)
        least_s, most_s = todo.expected_s()
        return least_s + more_s, most_s + more_s

    async def _start_subject(self, subject: StartedSubject) -> None:
        try:
            await subject.start()
        except MEASUREMENT_ERRORS as error:
            self._drop(subject.name, f"cannot be started: {error}")

    async def _warm_up(self, subject: measure.MeasuredSubject) -> None:
        """Drop a subject that does not answer with success."""
        path = self._spec.path
        try:
            report = await measure.warm_up(subject, path, self._spec.measures.warmup_s)
        except MEASUREMENT_ERRORS as error:
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
        subjects: list[measure.MeasuredSubject] = [*self._started.values(), *self._others.values()]
        return [subject for subject in subjects if subject.name not in self._dropped]

    def _plan(self) -> Plan:
        working = [subject.name for subject in self._working()]
        # Upstreams are run by somebody else, even behind a proxy of ours.
        ours = [
            one.name for one in self._spec.variants
            if one.name in working and not one.service.upstreams
        ]  # fmt: skip
        others = [name for name in working if name not in ours]
        return Plan(ours, others, self._spec.measures)

    async def _measure(self) -> None:
        todo = self._plan()
        measures = self._spec.measures
        await self._take(todo.first())
        if self._spec.verify_with:
            await self._verify()
        for number in range(measures.most_rounds):
            if not todo.has_time_for(number, self._elapsed_s()):
                break
            if number >= measures.least_rounds > 2 and self._is_settled():
                break
            await self._take(todo.round(number))
            self._rounds = number + 1
        for one in todo.last():
            total_s = measures.max_total_s
            needed_s = self._elapsed_s() + plan.seconds(one) + plan.STOP_S
            if total_s is not None and measures.quick and needed_s > total_s:
                name = PASS_NAMES[one[0].kind]
                self._notes[f"not measured: {name}; there was no time for it"] = None
            else:
                await self._take((one,))

    async def _take(self, passes: Sequence[Pass]) -> None:
        for step in (step for steps in passes for step in steps):
            self._progress.describe(description(step))
            await self._steps.take(step)
            self._progress.advance(step.seconds)

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    def _is_settled(self) -> bool:
        return evaluation.is_settled_by(self._result())

    async def _verify(self) -> None:
        """The time for it is not that of the rounds."""
        begin_s = self._elapsed_s()
        loads: tuple[LoadKind, ...] = ("keepalive", "connect")
        for subject in self._working():
            self._progress.describe(f"our generator beside wrk: {subject.name}")
            for kind in loads:
                job = self._steps.job(kind, subject.name)
                try:
                    found = await verification.verify(subject.name, job, self._spec.verify_with)
                except MEASUREMENT_ERRORS as error:
                    self._measurements[subject.name].note(f"our generator beside wrk: {error}")
                    continue
                if found:
                    self._verification.append(found)
        self._started_at += self._elapsed_s() - begin_s

    async def _measure_scaling(self) -> None:
        spec = self._spec
        for one in self._scaling:
            self._progress.describe(f"{one.workers} worker{'s' * (one.workers > 1)} each")
            await one.measure(spec.measures, spec.path, self._generator, self._measurements)

    def _result(self) -> Comparison:
        spec = self._spec
        return Comparison(
            penstock=release.version(),
            build=release.build(),
            started=self._begun,
            command=spec.command,
            machine=self._machine,
            config=spec.config,
            workers=spec.workers,
            rounds=self._rounds,
            seconds=spec.measures.seconds,
            quick=spec.measures.quick,
            interrupted=self._interrupted,
            access_log=spec.access_log,
            noise=self._noise,
            verification=tuple(self._verification),
            notes=tuple(self._notes),
            subjects=tuple(one.subject() for one in self._measurements.values()),
        )
