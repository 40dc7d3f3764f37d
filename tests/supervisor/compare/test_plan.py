"""A comparison measures in complete, alternating rounds within its time limit."""

import pytest

from penstock_supervisor.compare import plan
from penstock_supervisor.compare.plan import Measures, measures, passes
from penstock_supervisor.compare.report.result import FAULTS, LOADS

SCHEMES = ("ports/http", "ports/tcp", "handoff", "shared", "reuseport")
EXTERNAL = ("127.0.0.1:8080",)


def usual(**more: object) -> Measures:
    arguments = {"quick": False, "rounds": None, "max_fds": 20_000, **more}
    return measures(**arguments)  # type: ignore[arg-type]


def test_every_round_has_every_load_on_every_subject() -> None:
    found = [step for one in passes(SCHEMES, EXTERNAL, usual()) for step in one]
    for number in range(3):
        for load in LOADS:
            names = [s.subject for s in found if (s.kind, s.round) == (load, number)]
            assert sorted(names) == sorted((*SCHEMES, *EXTERNAL))


def test_rounds_alternate_between_subjects() -> None:
    for one in passes(SCHEMES, EXTERNAL, usual()):
        names = [step.subject for step in one]
        assert len({step.kind for step in one}) == 1
        assert len(set(names)) == len(names)


def test_no_subject_is_always_the_first() -> None:
    firsts = {one[0].subject for one in passes(SCHEMES, (), usual()) if one[0].kind == "keepalive"}
    assert len(firsts) == 3


def test_held_connections_are_measured_once_and_before_faults() -> None:
    kinds = [one[0].kind for one in passes(SCHEMES, (), usual())]
    assert kinds.count("held") == 1
    assert kinds.index("held") < min(kinds.index(fault) for fault in FAULTS)
    assert set(kinds[-3:]) == set(FAULTS)


def test_external_subjects_get_no_faults() -> None:
    found = [step for one in passes(SCHEMES, EXTERNAL, usual()) for step in one]
    assert not any(step.subject in EXTERNAL and step.kind in FAULTS for step in found)
    assert passes((), EXTERNAL, usual())
    assert all(one[0].kind not in FAULTS for one in passes((), EXTERNAL, usual()))


def test_a_quick_comparison_takes_less_than_a_minute_by_plan() -> None:
    wanted = usual(quick=True)
    elapsed = plan.START_S
    done = []
    for one in passes(SCHEMES, EXTERNAL, wanted):
        if plan.fits(one, elapsed, wanted):
            elapsed += plan.seconds(one)
            done.append(one[0].kind)
    assert elapsed + plan.STOP_S < 60
    assert {"keepalive", "connect", "rate", "held", "kill"} <= set(done)


def test_a_slow_machine_skips_optional_steps_and_never_a_first_load() -> None:
    wanted = usual(quick=True)
    found = passes(SCHEMES, (), wanted)
    kept = [one[0].kind for one in found if plan.fits(one, 1000.0, wanted)]
    assert kept == list(LOADS)


def test_an_explicit_number_of_rounds_is_measured_however_long_it_takes() -> None:
    wanted = usual(quick=True, rounds=4)
    found = passes(SCHEMES, (), wanted)
    assert wanted.rounds == 4
    assert all(plan.fits(one, 1000.0, wanted) for one in found)


def test_the_default_takes_a_few_minutes() -> None:
    total = sum(map(plan.seconds, passes(SCHEMES, (), usual())))
    assert 120 < total < 420


@pytest.mark.parametrize(("max_fds", "held"), [(20_000, 1000), (1024, 274), (100, 10)])
def test_no_more_connections_are_held_than_descriptors_allow(max_fds: int, held: int) -> None:
    wanted = usual(max_fds=max_fds)
    assert wanted.held == held
    assert wanted.connections <= wanted.held


def test_the_curve_grows_to_the_last_connection() -> None:
    assert plan.held_steps(1000) == (100, 250, 500, 750, 1000)
    assert plan.held_steps(1) == (1,)
    assert list(plan.held_steps(10)) == sorted(set(plan.held_steps(10)))


@pytest.mark.parametrize(
    ("throughputs", "expected"),
    [
        ([8000.0, 4000.0], 2000.0),
        ([8000.0, 0.0], 4000.0),
        ([], plan.MIN_RATE),
        ([0.0], plan.MIN_RATE),
        ([1.0], plan.MIN_RATE),
        ([1e9], plan.MAX_RATE),
    ],
)
def test_the_constant_rate_is_half_of_the_slowest_subjects_throughput(
    throughputs: list[float], expected: float
) -> None:
    assert plan.rate(throughputs, 0.5) == expected


@pytest.mark.parametrize("kind", [*LOADS, "held", *FAULTS])
def test_every_step_is_a_load_a_fault_or_held_connections(kind: plan.Kind) -> None:
    found = [plan.load_of(kind), plan.fault_of(kind), "held" if kind == "held" else None]
    assert [one for one in found if one] == [kind]
    assert plan.is_load(kind) == (kind in LOADS)
