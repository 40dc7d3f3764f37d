"""Carries out the steps of the plan: one measurement of one subject each.

If a measurement fails, its figure is missing and a note is left; the others go on. Owns the
constant rate: it is found once, so that it is the same for every subject and every round.
"""

from collections.abc import Mapping
from typing import Final

from penstock_supervisor.compare import faults, measure, plan
from penstock_supervisor.compare.load.driver import Job
from penstock_supervisor.compare.load.wrk import WrkError
from penstock_supervisor.compare.plan import Measures, PlanStep
from penstock_supervisor.compare.report.measurements import Measurements
from penstock_supervisor.compare.report.result import FaultKind, LoadKind
from penstock_supervisor.compare.subject import RunningSubject, SubjectError

MEASUREMENT_ERRORS: Final = (SubjectError, WrkError, OSError, TimeoutError)
"""What may go wrong with one measurement without being a bug of ours."""
PASS_NAMES: Final = {
    "held": "held connections",
    "kill": "a worker killed",
    "block": "a worker blocked",
    "roll": "all workers replaced",
}
_LOAD_NAMES: Final = {
    "keepalive": "keep-alive load", "connect": "a connection per request",
    "rate": "constant rate",
}  # fmt: skip
_FAULT_CONNECTIONS: Final = 48
"""So many that what a dead worker takes along is no matter of chance."""


class Steps:
    """Of one comparison."""

    def __init__(
        self,
        subjects: Mapping[str, measure.MeasuredSubject],
        measurements: Mapping[str, Measurements],
        generator: measure.LoadGenerator,
        measures: Measures,
        path: str,
    ) -> None:
        self._subjects = subjects
        self._measurements = measurements
        self._generator = generator
        self._measures = measures
        self._path = path
        self._rates: dict[float, float] = {}

    async def take(self, step: PlanStep) -> None:
        measurements = self._measurements[step.subject]
        try:
            if load_kind := plan.load_of(step.kind):
                await self._load(load_kind, step.subject)
            elif fault_kind := plan.fault_of(step.kind):
                await self._fault(fault_kind, step.subject)
            else:
                steps = plan.held_steps(self._measures.held)
                await measure.hold(self._subjects[step.subject], self._path, steps, measurements)
        except PermissionError:
            measurements.note("its processes may not be looked at: no descriptors and memory")
        except MEASUREMENT_ERRORS as error:
            measurements.note(f"{PASS_NAMES.get(step.kind, step.kind)}: {error}")

    def job(self, kind: LoadKind, name: str) -> Job:
        """The load of that kind on that subject."""
        measures = self._measures
        return Job(
            address=self._subjects[name].address,
            path=self._path,
            kind=kind,
            connections=measures.connections,
            seconds=measures.seconds,
            rate=self._rate(plan.RATE_SHARE) if kind == "rate" else 0.0,
        )

    async def _load(self, kind: LoadKind, name: str) -> None:
        subject, measurements = self._subjects[name], self._measurements[name]
        await measure.load(subject, self.job(kind, name), self._generator, measurements)
        if not isinstance(subject, RunningSubject) and not await subject.roles():
            measurements.note("its processes are not to be seen: no CPU, descriptors and memory")

    async def _fault(self, kind: FaultKind, name: str) -> None:
        measures, subject = self._measures, self._subjects[name]
        assert isinstance(subject, RunningSubject)
        job = Job(
            address=subject.address,
            path=self._path,
            kind="rate",
            connections=min(_FAULT_CONNECTIONS, measures.connections),
            seconds=measures.fault_s[kind],
            rate=self._rate(plan.FAULT_RATE_SHARE),
        )
        self._measurements[name].faults[kind] = await faults.fault(kind, subject, job)

    def _rate(self, share: float) -> float:
        if share not in self._rates:
            throughputs = [one.throughput("keepalive") for one in self._measurements.values()]
            self._rates[share] = plan.rate(throughputs, share)
        return self._rates[share]


def description(step: PlanStep) -> str:
    """What is done now, for the progress."""
    name = (_LOAD_NAMES | PASS_NAMES)[step.kind]
    prefix = f"round {step.round + 1}, " if plan.is_load(step.kind) else ""
    return f"{prefix}{name}: {step.subject}"
