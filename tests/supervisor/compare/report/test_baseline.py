"""An invalid baseline is refused, and only a difference beyond the spread counts.

Covers `compare/report/result`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock_supervisor.compare.report import baseline
from penstock_supervisor.compare.report.result import Comparison, LoadKind, Spread, Subject


def test_a_written_result_is_read_back_unchanged(sample: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_text(sample.model_dump_json())

    assert baseline.load(file) == sample


def test_a_file_with_the_earlier_name_of_the_proxy_role_is_read(
    sample: Comparison, tmp_path: Path
) -> None:
    text = sample.model_dump_json()
    assert '"proxy":' in text
    file = tmp_path / "before.json"
    file.write_text(text.replace('"proxy":', '"front":'))

    assert baseline.load(file) == sample


def test_a_file_of_the_format_before_is_read(sample: Comparison, tmp_path: Path) -> None:
    content = json.loads(sample.model_dump_json())
    content["format"] = 1
    for key in ("build", "noise", "access_log", "verification"):
        del content[key]
    for subject in content["subjects"]:
        del subject["setup"], subject["scaling"]
        for one in subject["loads"].values():
            del one["kernel_us"], one["generator"]
    file = tmp_path / "before.json"
    file.write_text(json.dumps(content))

    assert baseline.load(file) == sample.model_copy(update={"build": ""})
    assert baseline.differences(sample, baseline.load(file))


def test_another_build_is_said_if_both_files_name_theirs(sample: Comparison) -> None:
    pure = sample.model_copy(update={"build": "pure Python"})
    unknown = sample.model_copy(update={"build": ""})

    assert baseline.caveats(sample, pure) == ("build: pure Python, now compiled",)
    assert baseline.caveats(sample, unknown) == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no result of penstock compare"),
        (b'"text"', "is no result of penstock compare"),
        (b'{"subjects": []}', "is no result of penstock compare"),
        (b'{"format": 7, "subjects": []}', "has format 7, and this version reads 1, 2 and 3"),
        (b'{"format": "\\n\\u001b[31m", "subjects": []}', "has format"),
        (b'{"format": 1, "subjects": []}', "penstock: Field required"),
        (b'{"format": 1, "subjects": [], "x": NaN}', "NaN is no figure"),
        (b'{"format": 1, "subjects": [], "x": 1e999}', "1e999 is no figure"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_one_line(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "before.json"
    file.write_bytes(content)

    with pytest.raises(ValueError, match=problem) as raised:
        baseline.load(file)
    assert str(file) in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("key", ["requests_per_s", "p99_s"])
def test_a_result_with_a_wrong_field_names_the_field(
    sample: Comparison, tmp_path: Path, key: str
) -> None:
    content = json.loads(sample.model_dump_json())
    content["subjects"][1]["loads"]["connect"][key] = "fast"
    file = tmp_path / "before.json"
    file.write_text(json.dumps(content))

    with pytest.raises(ValueError, match=rf"subjects\.1\.loads\.connect\.{key}"):
        baseline.load(file)


def test_two_subjects_with_the_same_name_are_refused(sample: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    twice = sample.model_copy(update={"subjects": sample.subjects[:1] * 2})
    file.write_text(twice.model_dump_json())

    with pytest.raises(ValueError, match="two subjects named ports/http"):
        baseline.load(file)


def test_a_missing_file_and_one_that_is_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*: No such file"):
        baseline.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        baseline.load(tmp_path)
    monkeypatch.setattr(baseline, "MAX_BYTES", 10)
    large = tmp_path / "large"
    large.write_text(" " * 11)
    with pytest.raises(ValueError, match="is no result"):
        baseline.load(large)


def test_a_run_compared_with_itself_has_no_differences(sample: Comparison) -> None:
    found = baseline.differences(sample, sample)

    assert found
    assert {one.sign for one in found} == {"alike"}
    assert baseline.caveats(sample, sample) == ()


@pytest.mark.parametrize(
    ("values", "sign", "text"),
    [
        ((36_000.0, 36_400.0, 36_100.0), "better", "+100% better"),
        ((9_000.0, 9_100.0, 9_080.0), "worse", "-50% worse"),
        ((17_000.0, 40_000.0, 28_500.0), "alike", "+58% ="),
        ((360_000.0, 361_000.0, 360_500.0), "better", "20 times better"),
        # A subject that answered nothing has no ratio, and a note of its own.
        ((0.0, 0.0, 0.0), "alike", "-100% ="),
    ],
)
def test_a_difference_counts_when_it_exceeds_the_spread(
    sample: Comparison, values: tuple[float, ...], sign: str, text: str
) -> None:
    before = changed(sample, (17_950.0, 18_250.0, 18_050.0))
    found = baseline.differences(changed(sample, values), before)
    one = next(
        one for one in found
        if one.figure.key == "keepalive.requests_per_s" and one.subject == "ports/http"
    )  # fmt: skip

    assert one.sign == sign
    assert one.text == text


def test_a_decrease_of_a_cost_is_better(sample: Comparison) -> None:
    first = sample.subjects[0]
    assert first.held
    lean = first.held.model_copy(update={"fds": {"proxy": 1.0, "workers": 1.0}})
    now = with_first(sample, first.model_copy(update={"held": lean}))
    found = {(one.figure.key, one.subject): one for one in baseline.differences(now, sample)}

    assert found["held.fds", "ports/http"].text == "-33% better"


def test_different_conditions_of_two_runs_are_listed(compared: Callable[..., Comparison]) -> None:
    now = compared(others=1)
    then = compared().model_copy(
        update={
            "workers": 2,
            "machine": {**now.machine, "kernel": "Linux 5.10"},
            "config": "",
            "subjects": compared().subjects[1:],
        }
    )

    assert baseline.caveats(now, then) == (
        "kernel was Linux 5.10, now Linux 6.1.0-28-amd64",
        "workers: 2, now 4",
        "the configuration was another",
        "the baseline has no 127.0.0.1:8080, ports/http",
    )


def changed(comparison: Comparison, values: tuple[float, ...]) -> Comparison:
    first = comparison.subjects[0]
    kind: LoadKind = "keepalive"
    load = first.loads[kind].model_copy(update={"requests_per_s": Spread(values=values)})
    return with_first(comparison, first.model_copy(update={"loads": {**first.loads, kind: load}}))


def with_first(comparison: Comparison, first: Subject) -> Comparison:
    return comparison.model_copy(update={"subjects": (first, *comparison.subjects[1:])})
