"""The process that makes load: `python -m penstock_supervisor.compare.load.generator`.

It writes "ready" when it has imported everything, reads one job as a line of JSON from its
standard input, and writes one result. It ends when its standard input is closed, so it does not
outlive the process that started it, even if that is killed.

Closed loop (keepalive, connect): each client sends its next request when it has its response.
Open loop (rate): requests are due at fixed moments, independent of earlier ones, and a latency
begins when the request is due. So if a server stands still for a second, the latencies of all
requests that are due in that second show it, and not only those of requests in progress.

Responses to requests that were sent in time are waited for, and their latencies count. A closed
loop does not count them as throughput: they would add a request for each client to those that
the subject answered in the time. A request that was due and found no free client until the end
is never sent: the rate was not reached, and the figures show it.

During the load a latency is appended to an array and no more; buckets are found afterwards. The
garbage collector is off then: a request leaves no cycles, and the collector would only walk
through what was imported.
"""

import ctypes
import gc
import os
import sys
from array import array
from collections import Counter, deque
from math import ceil
from time import monotonic, process_time
from typing import Final

from penstock_supervisor.compare import stdin_pipe
from penstock_supervisor.compare.load.clients import (
    Client,
    Poller,
    raise_fd_limit,
    request,
)
from penstock_supervisor.compare.load.connector import Connector
from penstock_supervisor.compare.load.job import READY, Job, LoadReport
from penstock_supervisor.compare.report import histogram

_MIN_TICK_S: Final = 100e-6
"""The shortest time between two moments at which requests are due: each is a wake-up."""
_SWEEP_S: Final = 0.05
"""Between two checks for requests that take too long and clients that could not connect."""
_CONNECT_S: Final = 2.0
"""To connect before the load begins."""
_MAX_CONNECTING: Final = 64
"""Connections that are opened at the same time, so that no backlog overflows."""
_MAX_CPU_SHARE: Final = 0.9
"""Of the processor; with more the generator counts as the limit."""


class Load:
    """Runs one job. Call `run` once."""

    def __init__(self, job: Job, poller: Poller) -> None:
        keep = job.kind != "connect"
        connector, data = Connector(job.address), request(job.host, job.path, keep=keep)
        self._job, self._poller = job, poller
        self._schedule = Schedule(job.rate) if job.kind == "rate" else None
        on_done = self._on_done if self._schedule is None else self._on_scheduled_done
        self._clients = [
            Client(poller, connector, data, keep=keep, on_done=on_done)
            for _ in range(job.connections)
        ]
        self._idle: deque[Client] = deque()
        """Open loop: free clients, the longest idle one first."""
        self._paused: list[Client] = []
        """Closed loop: clients that could not connect. They try again at the next sweep."""
        self._end = 0.0
        self._latencies = array("d")
        """Of successful requests, in seconds."""
        self._errors: Counter[str] = Counter()

    def run(self) -> LoadReport:
        job = self._job
        if job.kind != "connect":
            connect_all(self._poller, self._clients, _CONNECT_S)
        begin, cpu_begin = monotonic(), process_time()
        self._end = begin + job.seconds
        if self._schedule is None:
            for client in self._clients:
                self._send_next(client, monotonic())
        else:
            self._idle.extend(self._clients)
            self._schedule.start(begin)
            self._poller.add(self._schedule.fd, self._send_due)
        self._loop(begin)
        seconds, cpu_s = monotonic() - begin, process_time() - cpu_begin
        in_time = len(self._latencies)
        self._drain()
        return LoadReport(
            requests=len(self._latencies),
            late=len(self._latencies) - in_time if self._schedule is None else 0,
            errors=dict(self._errors),
            seconds=seconds,
            histogram=dict(Counter(map(histogram.index, self._latencies))),
            worst_s=max(self._latencies, default=0.0),
            cpu_share=cpu_s / seconds,
            limited=cpu_s / seconds > _MAX_CPU_SHARE,
        )

    def _loop(self, now: float) -> None:
        next_sweep = now
        while (now := monotonic()) < self._end:
            if now >= next_sweep:
                self._sweep(now)
                next_sweep = now + _SWEEP_S
            self._poller.wait(max(0.0, min(next_sweep, self._end) - now))

    def _drain(self) -> None:
        """Wait for the requests in progress; each ends at its timeout at the latest."""
        if self._schedule is not None:
            self._poller.forget(self._schedule.fd)
            self._schedule.stop()
        while any(client.sent_at for client in self._clients):
            self._poller.wait(_SWEEP_S)
            self._sweep(monotonic())
        for client in self._clients:
            client.close()

    def _sweep(self, now: float) -> None:
        on_done = self._on_done if self._schedule is None else self._on_scheduled_done
        for client in self._clients:
            if client.expire(now):
                on_done(client, "timeout")
        paused, self._paused = self._paused, []
        if now < self._end:
            for client in paused:
                self._send_next(client, now)

    def _count(self, client: Client, error: str) -> float:
        """A request has ended. Returns when."""
        now = monotonic()
        if error:
            self._errors[error] += 1
        else:
            self._latencies.append(now - client.due)
        return now

    def _on_done(self, client: Client, error: str) -> None:
        """Closed loop: a request has ended, so the next one follows."""
        now = self._count(client, error)
        if now >= self._end:
            return
        if error == "connect":
            self._paused.append(client)
        else:
            self._send_next(client, now)

    def _send_next(self, client: Client, now: float) -> None:
        """Closed loop: the next request is due when it is sent."""
        if error := client.send(now, now):
            self._errors[error] += 1
            self._paused.append(client)

    def _on_scheduled_done(self, client: Client, error: str) -> None:
        """Open loop: a request has ended, so its client is free for one that is due."""
        schedule = self._schedule
        assert schedule is not None
        now = self._count(client, error)
        if now >= self._end:
            return
        if due := schedule.take(now):
            self._send_at(client, due, now)
        else:
            self._idle.append(client)

    def _send_due(self, _: int) -> None:
        """Open loop: send the requests that are due, as long as clients are free."""
        schedule = self._schedule
        assert schedule is not None
        schedule.clear_timer()
        now = monotonic()
        while self._idle and (due := schedule.take(now)):
            self._send_at(self._idle.popleft(), due, now)

    def _send_at(self, client: Client, due: float, now: float) -> None:
        """Open loop: send a request that was due at that moment."""
        if error := client.send(due, now):
            self._errors[error] += 1
            self._idle.append(client)


def connect_all(poller: Poller, clients: list[Client], timeout_s: float) -> None:
    """Open all connections before the load, so that it does not begin with a burst of connects."""
    deadline = monotonic() + timeout_s
    closed = list(reversed(clients))
    connecting: list[Client] = []
    while (closed or connecting) and monotonic() < deadline:
        while closed and len(connecting) < _MAX_CONNECTING:
            client = closed.pop()
            if not client.connect():
                connecting.append(client)
        poller.wait(_SWEEP_S)
        connecting = [client for client in connecting if client.open and not client.connected]


class Schedule:
    """When requests are due: in batches, at fixed intervals."""

    def __init__(self, rate: float) -> None:
        self._batch = ceil(rate * _MIN_TICK_S)
        self._interval_s = self._batch / rate
        self._begin = 0.0
        self._taken = 0
        """Requests so far."""
        self.fd = -1
        """Readable at each interval."""

    def start(self, begin: float) -> None:
        self._begin = begin
        self.fd = _timer(self._interval_s)

    def stop(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def clear_timer(self) -> None:
        os.read(self.fd, 8)

    def take(self, now: float) -> float:
        """Take the next request: when it was due. 0: none is due yet."""
        due = self._begin + self._taken // self._batch * self._interval_s
        if due > now:
            return 0.0
        self._taken += 1
        return due


def _timer(interval_s: float) -> int:
    """A timerfd, because the timeout of an epoll has only milliseconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    seconds, rest = divmod(max(1, round(interval_s * 1e9)), 10**9)
    spec = (ctypes.c_long * 4)(seconds, rest, seconds, rest)
    if fd < 0 or libc.timerfd_settime(fd, 0, ctypes.byref(spec), None) < 0:
        raise OSError(ctypes.get_errno(), "no timer")
    return fd


_CLOCK_MONOTONIC: Final = 1


def _main() -> int:
    os.write(1, READY)
    line = stdin_pipe.read_line()
    if line is None:
        return 1
    raise_fd_limit()
    poller = Poller()
    poller.add(stdin_pipe.FD, lambda _: os._exit(1))
    try:
        load = Load(Job.model_validate_json(line), poller)
        gc.freeze()
        gc.disable()
        report = load.run()
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(report.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
