"""What is kept of a process' output is its end, is bounded, and cannot act on a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.last_output import MAX_BYTES, MAX_LINES, LastOutput


def test_the_lines_of_both_pipes_stand_in_the_order_of_their_reading() -> None:
    last = LastOutput()
    last.add([b"starting", b"", b"on 8000"])
    last.add([b"Traceback"])
    assert last.text() == "starting\n\non 8000\nTraceback"


def test_a_silent_process_has_no_text() -> None:
    assert LastOutput().text() == ""


def test_of_many_lines_the_last_ones_are_kept() -> None:
    last = LastOutput()
    for number in range(1000):
        last.add([b"%d" % number])
    assert last.text().splitlines() == [str(one) for one in range(1000 - MAX_LINES, 1000)]


def test_of_a_long_line_the_end_is_kept_and_it_is_cut() -> None:
    last = LastOutput()
    last.add([b"before", b"x" * MAX_BYTES + b" the reason"])
    assert last.text().endswith("x the reason")
    assert len(last.text()) == 203


def test_what_cannot_be_printed_is_escaped() -> None:
    last = LastOutput()
    last.add([b"\x1b[2J\x00 caf\xc3\xa9 \xff"])
    assert last.text() == "\\x1b[2J\\x00 caf\u00e9 \ufffd"


@given(st.lists(st.lists(st.binary(max_size=3 * MAX_BYTES // 2), max_size=40), max_size=5))
def test_it_never_grows_beyond_its_bounds(reads: list[list[bytes]]) -> None:
    last = LastOutput()
    for lines in reads:
        last.add(lines)
        assert sum(map(len, last._lines)) == last._size <= MAX_BYTES
        assert len(last._lines) <= MAX_LINES
