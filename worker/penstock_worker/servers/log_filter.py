"""Keeps malformed requests out of logs.

aiohttp's server logs each as an error, with a traceback. A stranger could so fill a disk, or
hide what an operator has to see. Owns the filter that drops those records, unless the
logger's level is DEBUG. Must not drop what a program logs, nor its own errors.
"""

import logging
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError


class _MalformedRequests(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        found = record.exc_info and record.exc_info[1]
        if not isinstance(found, HttpProcessingError):
            return True
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


_FILTER: Final = _MalformedRequests()


def filtered_logger(name: str) -> logging.Logger:
    """The logger of that name, for aiohttp's server: it drops malformed requests."""
    logger = logging.getLogger(name)
    logger.addFilter(_FILTER)
    return logger
