"""Sets up logging: the supervisor's own messages go to stderr, one line each.

stdout is only for the access log and for output of workers, so that a pipe gets nothing else.
"""

import logging
import sys
from typing import Final

_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"


def set_up(verbosity: int) -> None:
    """Verbosity 0 is INFO; each step up or down is one level."""
    level = _LEVELS[max(0, min(len(_LEVELS) - 1, verbosity + 2))]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # At DEBUG asyncio logs its selector for every event loop.
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
