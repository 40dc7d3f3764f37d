"""An exception in words is bounded, and never raises another one."""

import pytest

from penstock_worker.runtime.exception_text import (
    MAX_TRACEBACK,
    described,
    place,
    reason,
    traceback_text,
)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_reason_is_one_bounded_line() -> None:
    assert reason(ValueError("a\n b")) == "ValueError: a b"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 9999))) == 500


def test_an_exception_that_cannot_be_shown_is_named() -> None:
    assert reason(UnspeakableError()) == "UnspeakableError: its __str__ fails"
    assert "UnspeakableError" in traceback_text(raised(UnspeakableError()))


def test_a_traceback_that_cannot_be_made_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> list[str]:
        raise RecursionError

    monkeypatch.setattr("traceback.format_exception", fails)
    assert traceback_text(ValueError("x")) == "ValueError: x (no traceback: RecursionError)\n"


def test_a_long_traceback_keeps_both_ends() -> None:
    text = traceback_text(ValueError("a" + "x" * 99999 + "z"))
    assert text.startswith("ValueError: a")
    assert text.endswith("z\n")
    assert len(text) <= MAX_TRACEBACK


def test_a_place_is_the_line_that_raised() -> None:
    name, path, line = place(raised(ValueError("x")))
    assert (name, path.endswith("test_exception_text.py"), line > 0) == ("ValueError", True, True)
    assert described((name, "/a.py", 7)) == 'ValueError ("/a.py", line 7)'


def test_the_place_of_a_group_is_that_of_its_first_exception() -> None:
    inner = raised(KeyError("x"))
    assert isinstance(inner, KeyError)
    assert place(ExceptionGroup("g", [ExceptionGroup("h", [inner])])) == place(inner)


def test_an_exception_that_was_never_raised_has_no_line() -> None:
    assert described(place(ValueError())) == "ValueError"
