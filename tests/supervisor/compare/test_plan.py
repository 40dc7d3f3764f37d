"""A comparison measures in complete, alternating rounds within its time limit."""

import pytest

from penstock_supervisor.compare import plan
from penstock_supervisor.compare.plan import Measures, Plan, measures
from penstock_supervisor.compare.report.result import FAULTS, LOADS
from penstock_supervisor.compare.variants import NAMES

SCHEMES = NAMES
EXTERNAL = ("127.0.0.1:8080",)


def usual(**more: object) -> Measures:
    arguments = {"quick": False, "rounds": None, "max_fds": 20_000, **more}
    return measures(**arguments)  # type: ignore[arg-type]


def planned(others: tuple[str, ...] = (), **more: object) -> Plan:
    return Plan(SCHEMES, others, usual(**more))


def test_every_round_has_every_load_on_every_subject() -> None:
    found = [step for one in planned(EXTERNAL).round(2) for step in one]
    for load in LOADS:
        names = [step.subject for step in found if (step.kind, step.round) == (load, 2)]
        assert sorted(names) == sorted((*SCHEMES, *EXTERNAL))


def test_a_pass_has_one_measurement_of_every_subject() -> None:
    every = planned(EXTERNAL)
    for one in (*every.first(), *every.round(0), *every.last()):
        names = [step.subject for step in one]
        assert len({step.kind for step in one}) == 1
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("subjects", [2, 3, 4, 5, 6])
def test_no_subject_is_always_the_first(subjects: int) -> None:
    some = Plan(SCHEMES[:subjects], (), usual())
    firsts = [some.round(number)[0][0].subject for number in range(subjects)]
    assert len(set(firsts)) == subjects


def test_idle_connections_come_first_and_faults_last() -> None:
    assert [one[0].kind for one in planned().first()] == ["held"]
    assert sorted(one[0].kind for one in planned().last()) == sorted(FAULTS)


def test_external_subjects_get_no_faults() -> None:
    found = [step for one in planned(EXTERNAL).last() for step in one]
    assert {step.subject for step in found} == set(SCHEMES)
    assert Plan((), EXTERNAL, usual()).last() == ()


def test_a_quick_comparison_takes_less_than_a_minute_by_plan() -> None:
    least_s, most_s = planned(quick=True).expected_s()
    assert least_s <= most_s < 60


def test_the_default_takes_a_few_minutes() -> None:
    least_s, most_s = planned().expected_s()
    assert 120 < least_s < most_s < 270
    one_round_s = plan.total_s(planned().round(0))
    assert least_s + 3 * one_round_s <= most_s


def test_rounds_are_added_only_while_there_is_time_for_the_faults_too() -> None:
    every = planned()
    assert all(every.has_time_for(number, 1000.0) for number in range(5))
    assert every.has_time_for(5, 100.0)
    assert not every.has_time_for(5, plan.DEFAULT_S - plan.total_s(every.last()))


def test_an_explicit_number_of_rounds_is_measured_however_long_it_takes() -> None:
    every = planned(quick=True, rounds=4)
    assert (every.wanted.least_rounds, every.wanted.most_rounds) == (4, 4)
    assert all(every.has_time_for(number, 1000.0) for number in range(4))


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
