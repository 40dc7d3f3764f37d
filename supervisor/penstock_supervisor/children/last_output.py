"""The last lines that one process wrote, for whoever has to say why it did not start.

Owns a bounded copy of what the process wrote to stdout and stderr, in the order in which it was
read. All lines go to our own output as well (`output`); these are kept because the reason of a
failed start, such as a traceback, is worth more beside the words "did not start" than somewhere
in a log. Must not know why a process ended. No I/O.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from penstock_supervisor.children.reported_text import shortened
from penstock_supervisor.children.stacks import IMPORTING
from penstock_worker.telemetry.printable import printable

MAX_LINES: Final = 30
"""A traceback through a framework, and the line that explains it."""
MAX_BYTES: Final = 8 << 10


class LastOutput:
    """Of one process; its pipes may be read for longer than it lives."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._size = 0

    def add(self, lines: Sequence[bytes]) -> None:
        """These lines were read, without their ends."""
        for line in [one for one in lines if not one.startswith(IMPORTING)][-MAX_LINES:]:
            # Of a line that is too long the end tells more: it is where an error's text stands.
            kept = line[-MAX_BYTES:]
            self._lines.append(kept)
            self._size += len(kept)
            while self._size > MAX_BYTES or len(self._lines) > MAX_LINES:
                self._size -= len(self._lines.popleft())

    def text(self) -> str:
        """The lines, one below the other. What cannot be printed is escaped, and long lines are
        cut; empty: it was silent."""
        lines = (shortened(printable(line.decode("utf-8", "replace"))) for line in self._lines)
        return "\n".join(lines).strip("\n")
