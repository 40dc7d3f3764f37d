"""Checks a run before, during and after a storm.

It owns what must be as before when the storm is over: descriptors, memory, threads, tasks and
active connections. It also owns what must add up: every request that a client saw answered is
counted once and logged once, and no connection was lost between proxy and worker.
"""

import asyncio
import json
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.support.chaos.load import Load
from tests.support.live.cluster import Cluster
from tests.support.live.wire import until

GROWTH: Final = 24 << 20
"""What a process may be larger after a storm than it was when warm, however long it lasted:
allocators keep what a peak needed."""
POOL: Final = 12
"""Threads that a process may have begun to use on the way; they are a fixed pool."""
OURS: Final = ("supervisor", "proxy")
COMPLAINTS: Final = re.compile(
    r"Traceback|Exception|Task exception|never retrieved|Fatal", re.MULTILINE
)


class Page:
    """All samples of /metrics at one moment."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            value
            for sample, has, value in self._samples
            if sample == name and labels.items() <= has.items()
        )


@dataclass(frozen=True, slots=True)
class View:
    """What our own processes have, by process: supervisor and proxies."""

    fds: dict[str, int]
    """Without connections to workers: idle ones may stay."""
    memory: dict[str, int]
    threads: dict[str, int]
    tasks: dict[str, int]
    """Of the event loops of each role, but for those of workers, which are replaced."""

    def is_within(self, before: "View") -> bool:
        is_within = all(count <= before.tasks[role] for role, count in self.tasks.items())
        return self.fds_within(before) and is_within

    def fds_within(self, before: "View") -> bool:
        return all(count <= before.fds[name] for name, count in self.fds.items())


def anonymous(pid: int) -> int:
    """Bytes of memory that are a process's own. What it maps of files comes and goes with the
    system's cache, ten megabytes of it from one moment to the next."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match, "a kernel that does not tell"
    return int(match[1]) << 10


class Witness:
    """Of one run, for one service."""

    def __init__(self, run: Cluster, service: str) -> None:
        self.asked = 0
        """Times that the admin port was asked during the storm, and answered."""
        self.restless = True
        self._run = run
        self._service = service
        self._count = len(run.workers(service))

    def page(self) -> Page:
        status, text = self._run.get("/metrics", "admin")
        assert status == 200, text
        return Page(text)

    async def ask(self) -> None:
        """As long as the storm lasts: each page of the admin port."""
        while self.restless:
            await asyncio.to_thread(self.page)
            status = await asyncio.to_thread(self._run.status)
            assert self._service in status["services"]
            assert (await asyncio.to_thread(self._run.get, "/healthz", "admin"))[0] == 200
            self.asked += 1
            await asyncio.sleep(0.3)

    # -- before and after

    def settled(self) -> None:
        """Wait until every worker and proxy is back and no client is left."""
        run = self._run

        def at_rest() -> bool:
            page = self.page()
            workers = run.workers(self._service)
            proxies = run.status()["proxies"]
            return (
                len(workers) == self._count
                and not any(one["result"] == "" for one in run.status()["rollouts"])
                and all(process["state"] == "ready" for process in (*workers, *proxies))
                and all(worker["health"] in ("up", None) for worker in workers)
                and not any(worker["active"] for worker in workers)
                and not page.sum("penstock_connections_active")
                and not page.sum("penstock_handoffs_in_flight")
                and not page.sum("penstock_queue_length")
                and not page.sum("penstock_fds", role="proxy", kind="client")
            )

        try:
            until(at_rest, "the rest after the storm")
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{json.dumps(run.status(), indent=1)}\n{run.err[-3000:]}"
            ) from None

    def view(self) -> View:
        status = self._run.status()
        processes = {"supervisor": psutil.Process(self._run.process.pid)}
        for proxy in status["proxies"]:
            processes[f"proxy/{proxy.get('slot', 0)}"] = psutil.Process(proxy["pid"])
        page = self.page()
        idle = int(page.sum("penstock_fds", role="proxy", kind="upstream"))
        fds = {name: process.num_fds() for name, process in processes.items()}
        proxies = [name for name in fds if name.startswith("proxy")]
        if proxies:
            # They are counted for all proxies together.
            fds = {"supervisor": fds["supervisor"], "proxies": sum(fds[f] for f in proxies) - idle}
        return View(
            fds,
            {name: anonymous(process.pid) for name, process in processes.items()},
            {name: process.num_threads() for name, process in processes.items()},
            {role: int(page.sum("penstock_event_loop_tasks", role=role)) for role in OURS},
        )

    def open_files(self) -> str:
        """What the proxies have open, one a line."""
        files = [
            f"{process['pid']}/{path.name}: {os.path.realpath(path)}"
            for process in self._run.status()["proxies"]
            for path in sorted(Path(f"/proc/{process['pid']}/fd").iterdir())
        ]
        return "\n".join(files)

    def compare(self, before: View) -> None:
        """After the storm: nothing more than there was."""
        after = before

        def is_as_before() -> bool:
            # This look is what is judged: at the next one a health check may be under way.
            nonlocal after
            after = self.view()
            return after.is_within(before)

        with suppress(AssertionError):
            until(is_as_before, "as few descriptors as before")
        assert after.fds_within(before), (
            f"descriptors: {before.fds} before, {after.fds} after\n{self.open_files()}"
        )
        assert after.is_within(before), f"tasks: {before.tasks} before, {after.tasks} after"
        for name, threads in after.threads.items():
            assert threads <= max(before.threads[name], POOL), f"{name} has {threads} threads"
        for name, size in after.memory.items():
            grown = size - before.memory[name]
            assert grown < GROWTH, f"{name} has grown by {grown >> 10:,} KiB"

    def log_is_clean(self) -> None:
        found = [line for line in self._run.said.splitlines() if COMPLAINTS.search(line)]
        assert not found, "\n".join(found[:20])

    # -- what has to add up

    def requests_add_up(self, load: Load) -> None:
        """The proxy's counters, the access log and the clients tell one story."""
        run, page = self._run, self.page()
        assert not page.sum("penstock_access_log_lines_dropped_total")
        counted = page.sum("penstock_requests_total", service=self._service)
        until(lambda: len(run.log) >= counted, "the access log")
        lines = run.log
        assert counted == len(lines)
        by_name: Counter[bytes] = Counter()
        logged: dict[bytes, int] = {}
        for line in lines:
            name = _name(line)
            by_name[name] += 1
            logged[name] = line["status"]
        twice = [name for name, count in by_name.items() if count > 1 and name]
        assert not twice, f"logged more than once: {twice[:10]}"
        differ = [n for n, status in load.answered.items() if logged.get(n) != status]
        assert not differ, [(n, load.answered[n], logged.get(n)) for n in differ[:10]]
        good = page.sum("penstock_requests_total", service=self._service, code="200")
        assert good == sum(status == 200 for status in (line["status"] for line in lines))

    def connections_add_up(self, load: Load) -> None:
        page = self.page()
        total = page.sum("penstock_connections_total", service=self._service)
        assert total == load.connections, (total, load.connections)
        sent = page.sum("penstock_bytes_total", service=self._service, direction="sent")
        received = page.sum("penstock_bytes_total", service=self._service, direction="received")
        assert sent >= load.got, (sent, load.got)
        assert received <= load.given, (received, load.given)

    def handoffs_add_up(self) -> None:
        def of(result: str) -> float:
            return page.sum("penstock_handoffs_total", service=self._service, result=result)

        page = self.page()
        assert of("lost") == 0
        total = page.sum("penstock_connections_total", service=self._service)
        rejected = page.sum("penstock_rejected_total", service=self._service)
        # A worker may announce one and be stopped before it reads it: that one was counted as
        # accepted, is read back all the same, and is accepted once more by another.
        accepted, again = of("accepted"), page.sum("penstock_retries_total", service=self._service)
        assert total <= accepted + rejected <= total + again, (accepted, again, rejected, total)


def _name(line: dict[str, Any]) -> bytes:
    parts = str(line.get("path") or line.get("target") or "").split("/")
    return parts[1].encode() if len(parts) > 1 else b""
