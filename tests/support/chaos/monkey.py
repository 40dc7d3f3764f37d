"""Does to processes what operators and machines do to them: kills, stops, replaces.

Each fault is injected once, the last one first. After that they are chosen at random. All are
counted by name. The first worker of a service is left alone, so that one worker always lives.
Stopped processes are continued, also when the storm ends early. A *hung* one is not: whoever
supervises it has to replace it. For some seconds no program can start, as during a deploy that
was done by half.
"""

import asyncio
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from tests.support.chaos.ledger import Ledger
from tests.support.live.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STOPPED_S: Final = (0.2, 4.0)
"""From too short to be noticed to longer than any time-out of a storm."""
PAUSE_S: Final = (0.05, 0.6)
BROKEN_S: Final = (0.5, 3.0)
"""How long no program can start."""
BETWEEN_PROXY_KILLS_S: Final = 4.0
"""A proxy that ends more than 20 times in a minute is in a crash loop, and away for seconds."""


class TooSoonError(Exception):
    """This fault is not injected now."""


class Monkey:
    """Injects faults into the workers of one service."""

    def __init__(
        self,
        run: Cluster,
        service: str,
        seed: str,
        ledger: Ledger,
        deeds: tuple[str, ...],
        broken: Path | None = None,
    ) -> None:
        """`broken`: the file that keeps programs from starting while it exists."""
        self.restless = True
        self._run = run
        self._service = service
        self._dice = random.Random(f"{seed}/monkey")
        self._ledger = ledger
        self._deeds = deeds
        self._loop = asyncio.get_running_loop()
        self._stopped: set[psutil.Process] = set()
        self._broken = broken
        self._next_proxy_kill = 0.0
        self._file = (run.folder / "penstock.toml").read_text()
        self._changes = 0
        self._does: dict[str, Callable[[], object]] = {
            "worker killed": lambda: self._worker().kill(),
            "worker terminated": lambda: self._worker().terminate(),
            "worker stopped": self._stop,
            "worker hung": lambda: self._worker().suspend(),
            "starts fail": self._break_starts,
            "proxy killed": self._kill_proxy,
            "proxy stopped": lambda: self._pause(self._proxy(), 0.3),
            "workers replaced": lambda: self._run.process.send_signal(signal.SIGHUP),
            "a bad version rolled out": self._roll_out_bad,
            "file changed": self._change_file,
            "file broken": self._break_file,
            "log opened anew": lambda: self._run.process.send_signal(signal.SIGUSR1),
        }

    async def storm(self) -> None:
        """Until there is rest; then everybody goes on."""
        try:
            for deed in self._order():
                await asyncio.sleep(self._dice.uniform(*PAUSE_S))
                if not self.restless:
                    return
                # A process that is not there any more has been done something to already.
                with suppress(psutil.NoSuchProcess, IndexError, TooSoonError):
                    await asyncio.to_thread(self._does[deed])
                    self._ledger.faults[deed] += 1
        finally:
            self._mend_starts()
            if self._changes:
                # As it was: also the number of workers.
                self._write_file(self._file)
                self._run.process.send_signal(signal.SIGHUP)
            for process in tuple(self._stopped):
                self._continue(process)

    def _order(self) -> "Iterator[str]":
        """Without an end. What a storm has for itself is listed last, and must not be missed."""
        yield from reversed(dict.fromkeys(self._deeds))
        while True:
            yield self._dice.choice(self._deeds)

    def _worker(self) -> psutil.Process:
        """One of those that are there, but not the first."""
        pids = [worker["pid"] for worker in self._run.workers(self._service) if worker["slot"]]
        return psutil.Process(self._dice.choice([pid for pid in pids if pid]))

    def _proxy(self) -> psutil.Process:
        pids = [proxy["pid"] for proxy in self._run.status()["proxies"]]
        return psutil.Process(self._dice.choice([pid for pid in pids if pid]))

    def _kill_proxy(self) -> None:
        now = self._loop.time()
        if now < self._next_proxy_kill:
            raise TooSoonError
        self._proxy().kill()
        self._next_proxy_kill = now + BETWEEN_PROXY_KILLS_S

    def _break_starts(self) -> None:
        assert self._broken is not None
        self._broken.touch()
        wait_s = self._dice.uniform(*BROKEN_S)
        self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, self._mend_starts)
        # A process that is there already does not notice: one has to start.
        self._worker().kill()

    def _roll_out_bad(self) -> None:
        """A version that cannot start; it is put right a moment after it was rolled out."""
        assert self._broken is not None
        self._broken.touch()
        self._run.process.send_signal(signal.SIGHUP)
        wait_s = self._dice.uniform(*BROKEN_S)
        self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, self._mend_starts)

    def _change_file(self) -> None:
        """Other settings, and sometimes one worker more or less, in a file that is reloaded."""
        self._changes += 1
        more = self._file.replace('"workers" = 4', f'"workers" = {4 + self._changes % 3 % 2}')
        self._write_file(f'{more}\n[service.web.forwarding]\nvia = "c{self._changes}"\n')
        self._run.process.send_signal(signal.SIGHUP)

    def _break_file(self) -> None:
        """It must change nothing."""
        self._changes += 1
        self._write_file(self._file[: len(self._file) // 2] + "[[")
        self._run.process.send_signal(signal.SIGHUP)

    def _write_file(self, text: str) -> None:
        path = self._run.folder / "penstock.toml"
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def _mend_starts(self) -> None:
        if self._broken is not None:
            self._broken.unlink(missing_ok=True)

    def _stop(self) -> None:
        self._pause(self._worker(), self._dice.uniform(*STOPPED_S))

    def _pause(self, process: psutil.Process, seconds: float) -> None:
        process.suspend()
        self._stopped.add(process)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._continue, process)

    def _continue(self, process: psutil.Process) -> None:
        self._stopped.discard(process)
        with suppress(psutil.NoSuchProcess):
            process.resume()
