"""Sentences follow from verdicts: the same machine says the same, and doubts are named.

Covers `compare/report/qualities`.
"""

from collections.abc import Callable

import pytest

from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.qualities import choose_when
from penstock_supervisor.compare.report.result import (
    Comparison,
    HeldResult,
    LoadKind,
    LoadResult,
    Noise,
    Spread,
    Subject,
    Verification,
)
from penstock_supervisor.compare.variants import NAMES


def said(comparison: Comparison) -> dict[str, str]:
    return sentences.sentences(comparison, evaluation.rows(comparison))


def doubts(comparison: Comparison, name: str) -> str:
    (subject,) = (one for one in comparison.subjects if one.name == name)
    return " ".join(sentences.doubts(comparison, subject))


def test_each_subject_is_told_what_it_costs_and_when_to_choose_it(
    compared: Callable[..., Comparison],
) -> None:
    assert said(compared(rounds=8)) == {
        "ports/http": "Most CPU; three descriptors a connection. Choose it when each request is to"
        " be balanced, checked, and tried once more on another worker if one dies; the program need"
        " not know of it.",
        "ports/tcp": "More CPU than handoff, shared and reuseport, less than ports/http; three"
        " descriptors a connection. Choose it when the protocol is not HTTP, or no byte may be"
        " changed; the program need not know of it.",
        "handoff": "On kept connections level with shared and reuseport at the least CPU; on new"
        " ones more CPU than shared and reuseport, less than ports/http and ports/tcp. Choose it"
        " when long or busy connections are to be spread by a policy, and no byte of them is to"
        " pass a proxy.",
        "shared": "On kept connections level with handoff and reuseport at the least CPU; on new"
        " ones level with reuseport at the least CPU. Choose it when there is to be no proxy at"
        " all, and the kernel may wake whichever worker is free.",
        "reuseport": "On kept connections level with handoff and shared at the least CPU; on new"
        " ones level with shared at the least CPU. Choose it when there is to be no proxy at all,"
        " and the kernel is to spread connections evenly by their hash; what waits for a busy"
        " worker goes to no other.",
    }


def test_when_to_choose_a_scheme_is_said_in_the_same_words_whatever_was_measured(
    compared: Callable[..., Comparison],
) -> None:
    def chosen(comparison: Comparison) -> list[str]:
        return [text[text.index("Choose it ") :] for text in said(comparison).values()]

    noisy = [compared(seed=seed, noise=20.0) for seed in range(5)]
    assert all(chosen(one) == chosen(compared(rounds=8)) for one in noisy)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_has_its_words_and_a_peer_of_that_name_has_none(name: str) -> None:
    scheme, _, mode = name.partition("/")
    assert choose_when(Subject(name=name, scheme=scheme, mode=mode)).startswith("Choose it ")
    assert choose_when(Subject(name=name, scheme="", mode="")) == ""


@pytest.mark.parametrize("seed", range(2, 12))
def test_another_run_on_the_same_machine_says_the_same(
    compared: Callable[..., Comparison], seed: int
) -> None:
    assert said(compared(rounds=8, seed=seed)) == said(compared(rounds=8))


def test_much_noise_makes_the_subjects_level(compared: Callable[..., Comparison]) -> None:
    noise = Noise(stolen=0.9, varies=2.0, late_s=0.004)
    noisy = compared(rounds=8).model_copy(update={"noise": noise})

    texts = said(noisy)
    assert texts["handoff"].startswith("No clear difference in CPU")
    assert "beyond 200 % are said" in sentences.noise(noisy)
    assert sentences.is_noisy(noisy)


def test_a_quiet_machine_is_said_without_a_warning(sample: Comparison) -> None:
    quiet = sample.model_copy(update={"noise": Noise(stolen=0.01, varies=0.02, late_s=6e-5)})

    assert sentences.noise(quiet) == (
        "Noise before the start: 1 % of each core was taken by others, equal work varied by 2 %, "
        "a sleeper woke up to 60.0 µs late."
    )
    assert not sentences.is_noisy(quiet)
    assert sentences.noise(sample) == ""


def test_the_headline_names_the_cheapest_and_says_if_there_is_none(
    compared: Callable[..., Comparison],
) -> None:
    found = compared(rounds=8)
    assert sentences.headline(found, evaluation.rows(found)) == (
        "Level at the least CPU a request: handoff, shared and reuseport."
    )
    level = found.model_copy(update={"noise": Noise(stolen=0.0, varies=0.9, late_s=0.0)})
    assert "no difference is clear" in sentences.headline(level, evaluation.rows(level))
    alone = found.model_copy(update={"subjects": found.subjects[:1]})
    assert sentences.headline(alone, evaluation.rows(alone)) == ""


def test_a_peer_is_described_like_any_other(compared: Callable[..., Comparison]) -> None:
    text = said(compared(others=1, rounds=8))["127.0.0.1:8080"]

    assert text == (
        "On kept connections more CPU than handoff, shared and reuseport, less than ports/http, "
        "level with ports/tcp; on new ones more CPU than handoff, shared and reuseport, less than "
        "ports/http and ports/tcp."
    )


def test_a_subject_without_figures_is_reported_as_not_measured(sample: Comparison) -> None:
    nothing = Subject(name="x", scheme="handoff", mode="", notes=("it did not start",))
    found = sample.model_copy(update={"subjects": (*sample.subjects, nothing)})

    assert said(found)["x"] == "Nothing was measured."
    assert doubts(found, "x") == "It did not start."


def test_a_single_subject_is_not_compared(sample: Comparison) -> None:
    alone = sample.model_copy(update={"subjects": sample.subjects[:1]})

    assert said(alone)["ports/http"].startswith("Nothing to compare it with. Choose it when ")


def test_a_subject_whose_processes_are_not_seen_has_no_cost(sample: Comparison) -> None:
    first, *others = sample.subjects
    loads = {
        kind: load.model_copy(update={"cpu_us": {}, "kernel_us": Spread(values=())})
        for kind, load in first.loads.items()
    }
    unseen = first.model_copy(update={"loads": loads})

    assert said(sample.model_copy(update={"subjects": (unseen, *others)}))[first.name].startswith(
        "What it costs is not known"
    )


def test_a_result_with_only_zeros_can_be_evaluated(sample: Comparison) -> None:
    once = Spread(values=(1.0,))
    load = LoadResult(
        requests=0, errors={}, requests_per_s=Spread(values=(0.0,)), p50_s=once, p90_s=once,
        p99_s=once, p999_s=once, worst_s=1.0, histogram={}, cpu_us={}, limited=False,
    )  # fmt: skip
    held = HeldResult(connections=1, fds={}, memory={}, ephemeral_ports=0.0, curve=())
    least = Subject(name="a", scheme="", mode="", loads={"keepalive": load}, held=held)

    assert said(sample.model_copy(update={"subjects": (least, sample.subjects[0])}))["a"]


def test_a_limit_of_the_load_generator_is_a_doubt(sample: Comparison) -> None:
    first, *others = sample.subjects
    load = first.loads["keepalive"].model_copy(update={"limited": True})
    limited = first.model_copy(update={"loads": {**first.loads, "keepalive": load}})

    assert "Under keep-alive load the load generator was the limit" in doubts(
        sample.model_copy(update={"subjects": (limited, *others)}), first.name
    )


def test_failed_requests_and_a_rate_that_was_not_reached_are_doubts(sample: Comparison) -> None:
    first, *others = sample.subjects
    kind: LoadKind = "connect"
    failing = first.loads[kind].model_copy(update={"errors": {"reset": 5000}})
    slow = first.loads["rate"].model_copy(update={"requests_per_s": Spread(values=(4000.0,))})
    broken = first.model_copy(update={"loads": {**first.loads, kind: failing, "rate": slow}})
    text = doubts(sample.model_copy(update={"subjects": (broken, *others)}), first.name)

    assert "of the requests failed (reset 5,000)" in text
    assert "It reached only 50 % of the constant rate" in text


def test_how_it_was_measured_is_one_line(sample: Comparison) -> None:
    logged = sample.model_copy(update={"access_log": True})

    assert sentences.circumstances(sample) == (
        "4 workers, 3 rounds of 3 s for each load, load by our generator, access log off"
    )
    assert sentences.circumstances(logged).endswith("access log on")


def test_both_load_generators_are_printed() -> None:
    found = Verification(
        subject="shared", kind="keepalive",
        own=Spread(values=(9_900.0,)), wrk=Spread(values=(10_000.0,)),
    )  # fmt: skip

    assert sentences.verification(found) == (
        "Requests/s of the keep-alive load: ours 9,900, wrk 10.0k, 1 % apart."
    )


def test_how_far_generators_are_apart_is_taken_turn_by_turn() -> None:
    # The machine was half as fast in the second turn.
    found = Verification(
        subject="shared", kind="connect",
        own=Spread(values=(9_900.0, 4_950.0, 9_900.0)),
        wrk=Spread(values=(10_000.0, 5_000.0, 5_000.0)),
        own_cpu_us=Spread(values=(50.0, 51.0, 52.0)), wrk_cpu_us=Spread(values=(48.0, 49.0, 50.0)),
    )  # fmt: skip

    assert sentences.verification(found) == (
        "Requests/s of the connection-per-request load: ours 9,900, wrk 5,000, 1 % apart, "
        "no clear difference. "
        "CPU of the generator itself a request: ours 51.0 µs, wrk 49.0 µs."
    )


def test_generators_that_are_surely_apart_are_said_to_be() -> None:
    found = Verification(
        subject="shared", kind="keepalive",
        own=Spread(values=(8_000.0, 8_100.0, 7_900.0, 8_000.0)),
        wrk=Spread(values=(10_000.0,) * 4),
    )  # fmt: skip
    assert sentences.verification(found).endswith("20 % apart.")


def test_a_turn_without_an_answer_leaves_no_ratio() -> None:
    found = Verification(
        subject="shared", kind="keepalive",
        own=Spread(values=(8_000.0,) * 3), wrk=Spread(values=(10_000.0, 0.0, 10_000.0)),
    )  # fmt: skip
    assert sentences.verification(found).endswith("ours 8,000, wrk 10.0k.")
