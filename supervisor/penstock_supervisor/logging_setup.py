"""Where the supervisor's own words go: stderr, a line each.

stdout is left to the access log and to what the workers print there, so that a pipe gets
nothing else.
"""

import logging
import sys
from typing import Final

_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"


def set_up(verbosity: int) -> None:
    """0 is the usual: what was started, ended, joined and left. Each step is a level."""
    level = _LEVELS[max(0, min(len(_LEVELS) - 1, verbosity + 2))]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # asyncio says at DEBUG which selector it took, each time.
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
