"""Measures how quiet the machine is, before anything of ours runs.

One process for each core computes equal pieces of work, and knows of each how long it took and
how much CPU time it got: what is missing was taken by others, or by the hypervisor. How much the
CPU time of equal pieces differs shows neighbours on the same caches and changes of the clock
rate. Another process sleeps, and knows how late it was woken.

`python -m penstock_supervisor.compare.host.noise spin AT` is such a process: it begins at that
moment of the monotonic clock, when all of them have started, and writes one line of JSON a second
later.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from statistics import fmean, median
from time import monotonic, process_time, sleep
from typing import Any, Final

from penstock_supervisor.compare.report.result import Noise
from penstock_supervisor.config.environment import inherited_environment

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.host.noise")
_MAX_CORES: Final = 16
_SECONDS: Final = 1.0
_PIECE: Final = 20_000
"""Additions: about half a millisecond, less than a time slice of the scheduler."""
_SLEEP_S: Final = 0.002
_START_S: Final = 0.8
"""For all processes to start; they must not disturb each other."""
_SLACK_S: Final = 10.0


async def measure() -> Noise | None:
    """Takes about two seconds. None: a process did not report."""
    cores = min(_MAX_CORES, len(os.sched_getaffinity(0)))
    at = monotonic() + _START_S
    try:
        *spun, slept = await asyncio.gather(
            *(_report("spin", at) for _ in range(cores)), _report("sleep", at)
        )
    except (OSError, TimeoutError, ValueError):
        return None
    return Noise(
        stolen=fmean(one["stolen"] for one in spun),
        varies=fmean(one["varies"] for one in spun),
        late_s=slept["late_s"],
    )


async def _report(what: str, at: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *_ARGV, what, str(at), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        env=inherited_environment(), start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_START_S + _SECONDS + _SLACK_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    found: dict[str, Any] = json.loads(out)
    return found


def spin(seconds: float = _SECONDS) -> dict[str, float]:
    """Compute for so long."""
    begin, cpu_begin = monotonic(), process_time()
    pieces = []
    before = cpu_begin
    while monotonic() - begin < seconds:
        total = 0
        for number in range(_PIECE):
            total += number
        after = process_time()
        pieces.append(after - before)
        before = after
    wall_s, cpu_s = monotonic() - begin, process_time() - cpu_begin
    return {"stolen": max(0.0, 1 - cpu_s / wall_s), "varies": _variation(pieces)}


def _variation(pieces: list[float]) -> float:
    """Half of the range of the middle 80 %, as a share of the median."""
    ordered = sorted(pieces)
    tenth = len(ordered) // 10
    return (ordered[-1 - tenth] - ordered[tenth]) / 2 / median(ordered)


def still(seconds: float = _SECONDS) -> dict[str, float]:
    """Sleep again and again for so long."""
    end, late = monotonic() + seconds, []
    while (before := monotonic()) < end:
        sleep(_SLEEP_S)
        late.append(monotonic() - before - _SLEEP_S)
    return {"late_s": max(0.0, sorted(late)[int(len(late) * 0.99)])}


if __name__ == "__main__":
    _what, _at = sys.argv[1:]
    sleep(max(0.0, float(_at) - monotonic()))
    sys.stdout.write(f"{json.dumps(spin() if _what == 'spin' else still())}\n")
