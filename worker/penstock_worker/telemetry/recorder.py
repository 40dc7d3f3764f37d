"""Counts and logs the requests of a worker that no proxy counts and logs.

Owns the way from a request that has ended to `counters` and to the access log. A line has the
same fields as a proxy's; those that only a proxy knows (time to connect, retries) are empty.
Must not know which server the request came through: `aiohttp_server` and `asgi_server` call it.
"""

from asyncio import AbstractEventLoop, TimerHandle
from time import time  # noqa: TID251 -- a log line tells the time of day
from typing import Final

from penstock_worker.telemetry.access_log import AccessLog, CombinedLog, Format, make_log
from penstock_worker.telemetry.counters import RequestCounters
from penstock_worker.telemetry.log_field import MAX_FIELD
from penstock_worker.telemetry.log_writer import LogWriter

_FLUSH_S: Final = 0.1


class Recorder:
    """`count` each request; `log` it too if `has_log`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        counters: RequestCounters,
        log: AccessLog | None,
        worker: str,
    ) -> None:
        self.has_log = log is not None
        self.wants_head = isinstance(log, CombinedLog)
        """A line has fields of the request's head."""
        self.count = counters.ended
        self._loop = loop
        self._log = log
        self._worker = worker
        self._wall_offset_s = 0.0
        """Between the loop's clock and the time of day, measured at each flush."""
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        if self._log is not None:
            self._tick()

    def log(
        self, client: str, method: str, target: bytes, version: str, status: int, sent: int,
        received: int, total_s: float, request_id: str, head: bytes, termination: str, /,
    ) -> None:  # fmt: skip
        """What `AccessLog.add` has to know, without what only a proxy knows. `head`: lines of
        `Referer` and `User-Agent`, if it `wants_head`."""
        if self._log is not None:
            self._log.add(
                self._loop.time() + self._wall_offset_s, client, method, target, version, status,
                sent, received, self._worker, None, None, total_s, 0, request_id, termination,
                head, "",
            )  # fmt: skip

    def reopen(self) -> None:
        """The file was renamed: continue in a new one."""
        if self._log is not None:
            self._log.reopen()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._log is not None:
            self._log.close()

    def _tick(self) -> None:
        assert self._log is not None
        self._wall_offset_s = time() - self._loop.time()
        self._log.flush()
        self._timer = self._loop.call_later(_FLUSH_S, self._tick)


def open_access_log(
    value: str | None, service: str, max_field: int = MAX_FIELD
) -> AccessLog | None:
    """Open the log that `contract.ACCESS_LOG` names. ValueError, OSError: it cannot be opened."""
    if not value:
        return None
    name, _, where = value.partition(":")
    if name not in ("json", "combined") or not where:
        raise ValueError(f"{value!r} is not FORMAT:WHERE")
    form: Format = "json" if name == "json" else "combined"
    log_writer = LogWriter(int(where) if where.isdecimal() else where)
    return make_log(service, log_writer, form, max_field)
