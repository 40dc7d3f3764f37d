"""What a process says of itself cannot pass for a line of ours."""

import pytest

from penstock_supervisor.children.reported_text import one_line, set_in, shortened


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("cache is corrupt", "cache is corrupt"),
        ("ä\n 00:00 INFO\r\n fine", "ä 00:00 INFO fine"),
        ("\x1b[2J\0\ud800", "\\x1b[2J\\x00\\ud800"),
        ({"a": None}, "{'a': None}"),
        ("", ""),
    ],
)
def test_a_reason_is_one_line_that_can_be_printed(value: object, line: str) -> None:
    assert one_line(value) == line


def test_a_traceback_is_set_in_below_its_line() -> None:
    assert set_in('T:\n  File "a"\n\x1b[2J\n') == '\n    T:\n      File "a"\n    \\x1b[2J'
    assert set_in("") == ""


def test_both_have_a_bound() -> None:
    assert len(one_line("x" * (1 << 20))) == len(set_in("x" * (1 << 20)).strip()) == 16 << 10


def test_a_long_line_is_shown_with_its_begin_and_its_end() -> None:
    text = f"orders.Error: {'x' * 2000} no such table"
    assert shortened(text).startswith("orders.Error: x")
    assert shortened(text).endswith("x no such table")
    assert len(shortened(text)) == 203
    assert shortened("x" * 200) == "x" * 200
