"""Where a program stands, in one line, from the stacks that it wrote when it was asked for them.

The stacks are as `penstock_worker.runtime.stack_dump` writes them: the threads, then the tasks of
the event loop, each with the innermost call first. The place that says most to the program's
author is the innermost one in their own code. What that calls, of the standard library or of a
package, is in the stacks. Must not know why the program was asked. No I/O.
"""

import re
from typing import Final

_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_THREADS: Final = ("Current thread 0x", "Thread 0x")
_OTHERS: Final = ("<frozen ", "/lib/python3", "/lib64/python3", "/penstock_worker/")
"""Not the program's own code: the import machinery, libraries, and our runtime."""
_MAX_PLACE: Final = 240
IMPORTING: Final = b'  File "<frozen importlib.'
"""How the lines of a stack begin that only say that something is being imported. There are five of
them for each import, and they would fill the room for all others."""


def place(text: str) -> str:
    """Such as `/srv/app.py, line 3, in <module>`; empty if the stacks are not there."""
    frames = [found for line in _from_main_thread(text) if (found := _FRAME.fullmatch(line))]
    own = [one for one in frames if not any(part in one[1] for part in _OTHERS)]
    found = next(iter(own or frames), None)
    return "" if found is None else f"{found[1]}, line {found[2]}, in {found[3]}"[:_MAX_PLACE]


def _from_main_thread(text: str) -> list[str]:
    """The stack of the main thread, which is shown last, and those of the tasks."""
    lines = text.splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith(_THREADS)]
    return lines[begins[-1] :] if begins else []
