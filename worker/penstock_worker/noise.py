"""Keeps out of a log what strangers send that is no request.

aiohttp's server logs all of it as an error, with a traceback: whoever finds the port could
fill a disk, and hide in it what an operator has to see. They are answered 400 as ever, and
at level DEBUG each is told of. Must not touch what a program logs, nor its own mistakes.
"""

import logging
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError


class _Noise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        found = record.exc_info and record.exc_info[1]
        if not isinstance(found, HttpProcessingError):
            return True
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


_NOISE: Final = _Noise()


def without(name: str) -> logging.Logger:
    """The logger of that name, for aiohttp's server: without what strangers send."""
    logger = logging.getLogger(name)
    logger.addFilter(_NOISE)
    return logger
