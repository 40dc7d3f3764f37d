"""The process that makes load: `python -m penstock_supervisor.compare.load.generator`.

It says "ready" once it has imported what it needs, gets one job as a line of JSON on its
standard input, and answers with one result. The same pipe is its lifeline: whoever wanted the
load may be killed, and then it ends.

Closed loop (keepalive, connect): each client asks again as soon as it has its answer. Open
loop (rate): requests become due at fixed moments, whatever became of those before, and a
latency begins when the request was due; so a server that stands still for a second is seen
by all who would have come meanwhile, and not only by those who were there.

What was asked in the given time is waited for, and counts. What was due and found no free
client until then was never asked: the rate was not reached, and the figures show it.
"""

import ctypes
import os
import sys
from collections import Counter, deque
from math import ceil
from time import monotonic, process_time
from typing import Final

from penstock_supervisor.compare.load.clients import Client, Poll, Route, raise_descriptors, request
from penstock_supervisor.compare.load.job import READY, Job, Report
from penstock_supervisor.compare.report import histogram

_TICK_S: Final = 100e-6
"""Between two moments when something is due, at least: each costs a wake-up."""
_SWEEP_S: Final = 0.05
"""Between two looks for requests whose time is up and clients that could not connect."""
_WARM_S: Final = 2.0
"""To connect before it begins."""
_AT_ONCE: Final = 64
"""Connections that are being made, so that no backlog is flooded before it begins."""
_LIMIT: Final = 0.9


class Load:
    """One job. `run` once."""

    def __init__(self, job: Job, poll: Poll) -> None:
        keep = job.kind != "connect"
        route, asked = Route(job.address), request(job.host, job.path, keep=keep)
        self._job, self._poll = job, poll
        self._clients = [
            Client(poll, route, asked, keep=keep, over=self._over) for _ in range(job.connections)
        ]
        self._schedule = Schedule(job.rate) if job.kind == "rate" else None
        self._idle: deque[Client] = deque()
        """Open loop: who is free, the longest so first."""
        self._paused: list[Client] = []
        """Closed loop: who could not connect, and tries again with the next sweep."""
        self._busy = 0
        self._until = 0.0
        self._counts: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()
        self._worst = 0.0

    def run(self) -> Report:
        job = self._job
        if job.kind != "connect":
            warm(self._poll, self._clients, _WARM_S)
        begin, used = monotonic(), process_time()
        self._until = begin + job.seconds
        if self._schedule is None:
            for client in self._clients:
                self._ask(client, monotonic())
        else:
            self._idle.extend(self._clients)
            self._schedule.start(begin)
            self._poll.add(self._schedule.fd, self._due)
        self._loop(begin)
        took, spent = monotonic() - begin, process_time() - used
        self._drain()
        return Report(
            requests=self._counts.total(),
            errors=dict(self._errors),
            seconds=took,
            histogram=dict(self._counts),
            worst_s=self._worst,
            cpu_share=spent / took,
            limited=spent / took > _LIMIT,
        )

    def _loop(self, now: float) -> None:
        sweep = now
        while (now := monotonic()) < self._until:
            if now >= sweep:
                self._sweep(now)
                sweep = now + _SWEEP_S
            self._poll.wait(max(0.0, min(sweep, self._until) - now))

    def _drain(self) -> None:
        """Wait for what is still outstanding; its time will be up at the latest."""
        if self._schedule is not None:
            self._poll.remove(self._schedule.fd)
        while self._busy:
            self._sweep(monotonic())
            if self._busy:
                self._poll.wait(_SWEEP_S)
        for client in self._clients:
            client.close()

    def _sweep(self, now: float) -> None:
        for client in self._clients:
            if client.expire(now):
                self._over(client, "timeout")
        paused, self._paused = self._paused, []
        if now < self._until:
            for client in paused:
                self._ask(client, now)

    def _ask(self, client: Client, now: float) -> None:
        """Closed loop: the next request is due when it is sent."""
        if error := client.ask(now, now):
            self._errors[error] += 1
            self._paused.append(client)
        else:
            self._busy += 1

    def _due(self) -> None:
        """Open loop: send what is due as long as somebody is free."""
        schedule = self._schedule
        assert schedule is not None
        schedule.clear()
        now = monotonic()
        while self._idle and (due := schedule.take(now)):
            self._ask_due(self._idle.popleft(), due, now)

    def _ask_due(self, client: Client, due: float, now: float) -> None:
        if error := client.ask(due, now):
            self._errors[error] += 1
            self._idle.append(client)
        else:
            self._busy += 1

    def _over(self, client: Client, error: str) -> None:
        self._busy -= 1
        now = monotonic()
        if error:
            self._errors[error] += 1
        else:
            took = now - client.due
            self._counts[histogram.index(took)] += 1
            if took > self._worst:
                self._worst = took
        if now >= self._until:
            return
        if self._schedule is None:
            if error == "connect":
                self._paused.append(client)
            else:
                self._ask(client, now)
        elif due := self._schedule.take(now):
            self._ask_due(client, due, now)
        else:
            self._idle.append(client)


def warm(poll: Poll, clients: list[Client], most_s: float) -> None:
    """Open connections ahead, so that the first answers are not those of a crowd."""
    until = monotonic() + most_s
    left = list(reversed(clients))
    opening: list[Client] = []
    while (left or opening) and monotonic() < until:
        while left and len(opening) < _AT_ONCE:
            client = left.pop()
            if not client.connect():
                opening.append(client)
        poll.wait(_SWEEP_S)
        opening = [client for client in opening if client.open and not client.connected]


class Schedule:
    """When requests are due: a batch of them at a time, at fixed distances."""

    def __init__(self, rate: float) -> None:
        self._batch = ceil(rate * _TICK_S)
        self._interval = self._batch / rate
        self._begin = 0.0
        self._next = 0
        self.fd = -1

    def start(self, begin: float) -> None:
        self._begin = begin
        self.fd = _timer(self._interval)

    def clear(self) -> None:
        os.read(self.fd, 8)

    def take(self, now: float) -> float:
        """When the next request was due, if that is not in the future: then 0."""
        due = self._begin + self._next // self._batch * self._interval
        if due > now:
            return 0.0
        self._next += 1
        return due


def _timer(interval_s: float) -> int:
    """A descriptor that is readable every so often: an epoll's own time-out has milliseconds."""
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
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return 1
        line += piece
    raise_descriptors()
    poll = Poll()
    # Nothing more is said to it: that it can be read is the end of who wanted the load.
    poll.add(0, lambda: os._exit(1))
    try:
        report = Load(Job.model_validate_json(line), poll).run()
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(report.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
