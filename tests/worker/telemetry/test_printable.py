"""What a program says cannot act on a terminal, and nothing of it is left out."""

import pytest

from penstock_worker.telemetry.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no table\t“orders”", "no table\t“orders”"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\r\n\0\x7f\u202e\ud800", "a\\r\\n\\x00\\x7f\\u202e\\ud800"),
        ("", ""),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
