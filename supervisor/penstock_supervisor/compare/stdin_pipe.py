"""The standard input of a helper process of a comparison: one line, and then its lifeline.

Owns: how the line is read. Whoever started the process writes one line of JSON, and keeps the pipe
open for as long as the process is to live. The kernel closes the pipe however the other side
ends, so no helper outlives it. What a helper does then is its own affair: it watches FD.
"""

import os
from typing import Final

FD: Final = 0
"""After the line it becomes readable only when it is closed."""


def read_line() -> bytes | None:
    """The line, with its end; None if the pipe was closed before all of it came.

    Read without a buffer, so that the end of the file is left to be noticed on FD.
    """
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(FD, 65536)
        if not piece:
            return None
        line += piece
    return line
