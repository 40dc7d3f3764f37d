"""What a worker notes of each request when no front sees it: a count, and perhaps a line.

Owns the way from a request that has ended to `counters` and to the access log, whose lines
have the front's shape; what only a front knows (time to connect, retries) is empty. Must not
know which server the request came through: `aiohttp_server` and `asgi_server` call it.
"""

from asyncio import AbstractEventLoop, TimerHandle
from time import time  # noqa: TID251 -- a log line tells the time of day
from typing import Final, NamedTuple

from penstock_worker.access_log import MAX_FIELD, AccessLog, Format
from penstock_worker.counters import RequestCounters
from penstock_worker.sink import Sink

_FLUSH_S: Final = 0.1


class Note(NamedTuple):
    """One request, as far as a line tells of it. Made only if there is a log."""

    client: str
    method: str | bytes
    target: str | bytes
    version: str
    status: int
    sent: int
    received: int
    total_s: float
    request_id: str
    head: bytes
    """Lines of `Referer` and `User-Agent`, for the combined format."""


class Recorder:
    """`count` each request; `note` it too if it `logs`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        counters: RequestCounters,
        log: AccessLog | None,
        worker: str,
    ) -> None:
        self.logs = log is not None
        self.count = counters.ended
        self._loop = loop
        self._log = log
        self._worker = worker
        self._wall = 0.0
        """Between the loop's clock and the time of day, as it was lately."""
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        if self._log is not None:
            self._tick()

    def note(self, note: Note) -> None:
        if self._log is not None:
            self._log.add(
                (
                    self._loop.time() + self._wall, note.client, note.method, note.target,
                    note.version, note.status, note.sent, note.received, self._worker,
                    None, None, note.total_s, 0, note.request_id, "ok", note.head, "",
                )
            )  # fmt: skip

    def reopen(self) -> None:
        """The file was renamed: go on in a new one."""
        if self._log is not None:
            self._log.reopen()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._log is not None:
            self._log.close()

    def _tick(self) -> None:
        assert self._log is not None
        self._wall = time() - self._loop.time()
        self._log.flush()
        self._timer = self._loop.call_later(_FLUSH_S, self._tick)


def opened(value: str | None, service: str, most: int = MAX_FIELD) -> AccessLog | None:
    """Open what `contract.ACCESS_LOG` says. ValueError and OSError: that cannot be."""
    if not value:
        return None
    form, _, where = value.partition(":")
    if form not in ("json", "combined") or not where:
        raise ValueError(f"{value!r} is not FORMAT:WHERE")
    form_: Format = "json" if form == "json" else "combined"
    return AccessLog(service, Sink(int(where) if where.isdecimal() else where), form_, most)
