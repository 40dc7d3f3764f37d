"""Whatever the rounds are, no two sentences contradict each other, and none the figures.

Every sentence is read as a reader would: whom it puts before and behind its subject. Who is not
named is level. Covers `compare/report/sentences` and `compare/report/evaluation`.
"""

import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.evaluation import FigureRow
from penstock_supervisor.compare.report.figures import Cell, Doubt, Figure
from penstock_supervisor.compare.report.result import Comparison, Subject

FIGURE: Final = Figure(
    key="keepalive.cpu", section="keepalive", label="x", quantity="cpu", read=lambda _: None
)
NAMES: Final = tuple("abcdefgh")
DOUBTS: Final[tuple[Doubt, ...]] = ("", "", "", "", "limited", "errors")

Claims = dict[str, int]
"""For each other one: 1 if it costs more than it, -1 if less, 0 if they are level."""


@st.composite
def rows(draw: st.DrawFn) -> FigureRow:
    """Subjects of near and far costs, with quiet and with noisy rounds."""
    rounds = draw(st.integers(3, 9))
    cells: list[Cell | None] = []
    for _ in range(draw(st.integers(2, len(NAMES)))):
        if not draw(st.integers(0, 9)):
            cells.append(None)
            continue
        usual = draw(st.sampled_from([100, 103, 106, 112, 125, 150, 220]))
        noise = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5]))
        factors = draw(st.lists(st.floats(-1, 1), min_size=rounds, max_size=rounds))
        values = tuple(usual * (1 + noise * one) for one in factors)
        middle = sorted(values)[rounds // 2]
        doubt = draw(st.sampled_from(DOUBTS))
        cells.append(Cell(middle, min(values), max(values), rounds, doubt, values))
    return evaluation.row(FIGURE, tuple(cells))


def comparison_of(sample: Comparison, row: FigureRow) -> Comparison:
    subjects = tuple(Subject(name=name, scheme="", mode="") for name in NAMES[: len(row.cells)])
    return sample.model_copy(update={"subjects": subjects})


def named(text: str, others: set[str]) -> set[str]:
    """ "a, b and c", or "all but a and b" """
    but = text.removeprefix("all but ")
    found = set(re.split(", | and ", but))
    assert found <= others, text
    return others - found if but != text else found


def claims(text: str, name: str, valid: set[str]) -> Claims:
    """What a reader takes from it."""
    others = valid - {name}
    text = text.removeprefix("On kept connections ")
    text = text.split(".")[0].removesuffix(" of those measured")
    if text == "least CPU":
        return dict.fromkeys(others, -1)
    if text == "most CPU":
        return dict.fromkeys(others, 1)
    if found := re.fullmatch("level with (.*) at the least CPU", text):
        group = named(found[1], others)
        return {one: 0 if one in group else -1 for one in others}
    read = dict.fromkeys(others, 0)
    names = "((?:all but )?[a-h](?:(?:, | and )[a-h])*)"
    for pattern, sign in ((f"more CPU than {names}", 1), (f"less (?:CPU )?than {names}", -1)):
        if found := re.search(pattern, text):
            read |= dict.fromkeys(named(found[1], others), sign)
    if found := re.search(f"level with {names}", text):
        assert named(found[1], others) == {one for one, sign in read.items() if not sign}
    assert any(read.values()) or text == "no clear difference in CPU"
    return read


@given(row=rows())
def test_sentences_agree_with_each_other_and_with_the_figures(row: FigureRow) -> None:
    found = comparison_of(EMPTY, row)
    texts = sentences.sentences(found, [row])
    if not any(row.better):
        return
    values = {NAMES[n]: cell.value for n in row.valid if (cell := row.cells[n])}
    read = {name: claims(texts[name], name, set(values)) for name in values}
    for one, others in read.items():
        for other, sign in others.items():
            assert read[other][one] == -sign, (texts[one], texts[other])
            if sign:
                assert (values[one] > values[other]) == (sign > 0), texts[one]
            beyond = [third for third, more in read[other].items() if sign == more != 0]
            assert all(others[third] == sign for third in beyond), texts[one]


@given(row=rows())
def test_a_superlative_is_sure_against_every_other_subject(row: FigureRow) -> None:
    found = comparison_of(EMPTY, row)
    texts = sentences.sentences(found, [row])
    assert sum("most CPU" in one for one in texts.values()) <= 1
    assert sum("least CPU" in one for one in texts.values()) == len(row.best)
    for column in row.best:
        assert row.level(column) == row.best - {column}
        assert row.worse(column) >= row.valid - row.best
    headline = sentences.headline(found, [row])
    assert ("least cpu" in headline.lower()) == bool(row.best) or not headline


@given(row=rows())
def test_no_star_is_beside_a_better_figure_without_one(row: FigureRow) -> None:
    values = {n: cell.value for n in row.valid if (cell := row.cells[n])}
    for column in row.best:
        assert all(values[column] < values[n] for n in row.valid - row.best)


def test_the_cheapest_is_not_the_only_one_that_some_are_worse_than() -> None:
    """114 < {169, 219}, and no verdict between the last two."""
    row = evaluation.row(
        FIGURE,
        (
            Cell(114, 113, 115, 3, "", (113, 114, 115)),
            Cell(169, 150, 190, 3, "", (150, 169, 190)),
            Cell(219, 170, 230, 3, "", (230, 219, 170)),
        ),
    )
    assert sentences.sentences(comparison_of(EMPTY, row), [row]) == {
        "a": "On kept connections least CPU.",
        "b": "On kept connections more CPU than a, level with c.",
        "c": "On kept connections more CPU than a, level with b.",
    }


@pytest.mark.parametrize(("missing", "words"), [(True, " of those measured."), (False, ".")])
def test_a_superlative_says_among_whom(missing: bool, words: str) -> None:
    cells = (Cell(100, 100, 100), Cell(200, 200, 200), None if missing else Cell(300, 300, 300))
    row = evaluation.row(FIGURE, cells)
    texts = sentences.sentences(comparison_of(EMPTY, row), [row])
    assert texts["a"] == f"On kept connections least CPU{words}"


EMPTY: Final = Comparison(
    penstock="", started="", command="", machine={}, config="", workers=1, rounds=3, seconds=1.0,
    quick=False, interrupted=False, subjects=(),
)  # fmt: skip
