"""The access logs of the services of a process: opened, exchanged and closed while it runs.

Owns: which file a service's lines go to. A log is opened before anything else of a changed
configuration is carried out, because only that can fail. What is in flight is logged once, at its
end, in the log of that moment. Must not know: what a line contains (`telemetry.access_log`).

A log is closed in a thread: to wait here for a slow disk or for a reader would stop the event loop.
"""

import asyncio
from functools import partial
from typing import NamedTuple

from penstock_proxy.config import ServiceConfig
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.error_log import ErrorLog
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.telemetry.access_log import AccessLog, open_log


class OpenedLog(NamedTuple):
    """What the key `access_log` of a service asks for; None: it is off."""

    log: AccessLog | None
    descriptors: int


class AccessLogs:
    """The logs of one process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd_budget: FdBudget) -> None:
        self._loop = loop
        self._fd_budget = fd_budget

    def open(self, config: ServiceConfig) -> OpenedLog:
        """Open the log of a service. OSError: that is not possible."""
        log = open_log(
            config.name, config.access_log, config.access_log_format, config.limits.log_field
        )
        opened = OpenedLog(log, descriptors_of(config))
        self._fd_budget.other += opened.descriptors
        return opened

    def exchange(self, service: Service, opened: OpenedLog, before: ServiceConfig) -> None:
        """From now on the service's lines go there. `before`: by which its log was opened."""
        old = service.error_log.access_log
        service.error_log.access_log = opened.log
        self._close(old, descriptors_of(before), service.error_log)

    def close(self, service: Service) -> None:
        """The service is gone: write what waits, and close its log."""
        log, service.error_log.access_log = service.error_log.access_log, None
        self._close(log, descriptors_of(service.config), service.error_log)

    def discard(self, opened: OpenedLog) -> None:
        """It is not needed: the configuration cannot be carried out."""
        self._close(opened.log, opened.descriptors, None)

    def _close(self, log: AccessLog | None, descriptors: int, counted: ErrorLog | None) -> None:
        if log is not None:
            log.flush()
            closing = self._loop.run_in_executor(None, log.close)
            closing.add_done_callback(partial(self._closed, log, descriptors, counted))

    def _closed(
        self,
        log: AccessLog,
        descriptors: int,
        counted: ErrorLog | None,
        _: "asyncio.Future[None]",
    ) -> None:
        self._fd_budget.other -= descriptors
        if counted is not None:
            counted.dropped_before += log.dropped


def is_same_log(one: ServiceConfig, other: ServiceConfig) -> bool:
    """Is a log that was opened by one configuration what the other one asks for?"""
    return _keys(one) == _keys(other)


def descriptors_of(config: ServiceConfig) -> int:
    """How many its log has open."""
    return 0 if config.access_log in ("stdout", "off") else 1


def _keys(config: ServiceConfig) -> tuple[str, str, int]:
    return config.access_log, config.access_log_format, config.limits.log_field
