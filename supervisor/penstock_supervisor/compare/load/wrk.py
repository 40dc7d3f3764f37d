"""wrk in place of our own generator: people know it, and it takes less CPU for new connections.

Over kept connections the two take about the same CPU time. With a connection for each request
ours takes about a sixth more, 2 to 17 µs, which a subject on the same cores would have had: see
docs/decisions/0022-comparison.md.

wrk has no constant rate, and connects to TCP ports only; for other loads our generator is used.
It takes whole seconds only, so it is told more than it gets, and ended by SIGINT as a person
would; it then counts the time that it had.
A script that wrk runs at its end prints the whole histogram, because wrk's own output has only a
few points of it.

Latencies of the two generators must not be compared. wrk corrects for coordinated omission under
every load; ours does so only at a constant rate. (After a slow response, the correction adds
latencies of requests that would have been sent meanwhile.) And wrk starts the clock when the
connection is open, ours before it connects.
"""

import asyncio
import json
import os
import signal
import tempfile
from collections import Counter
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare.load.driver import Job, LoadReport
from penstock_supervisor.compare.report import histogram

_TIMEOUT_S: Final = 5
"""The same as our own generator's."""
_START_S: Final = 0.05
"""To start, and to connect."""
_MORE_S: Final = 2
_SLACK_S: Final = 15.0
_MAX_CPU_SHARE: Final = 0.9
"""Of its threads' time; with more it counts as the limit."""
_MARK: Final = "penstock "
_SCRIPT: Final = """\
function done(summary, latency, requests)
  local cpu_s = os.clock()
  local rows = {}
  for i = 1, #latency do
    local value, count = latency(i)
    rows[#rows + 1] = string.format("[%d,%d]", value, count)
  end
  io.write(string.format(
    'penstock {"us":%d,"requests":%d,"connect":%d,"read":%d,"write":%d,"status":%d,'
    .. '"timeout":%d,"max_us":%d,"cpu_s":%f,"rows":[%s]}\\n',
    summary.duration, summary.requests, summary.errors.connect, summary.errors.read,
    summary.errors.write, summary.errors.status, summary.errors.timeout, latency.max,
    cpu_s, table.concat(rows, ",")))
end
"""


class WrkError(Exception):
    """wrk failed. One line for people."""


def supports(job: Job) -> bool:
    """Can wrk make this load?"""
    return job.kind != "rate" and not parse_address(job.address).path


async def drive(program: str, job: Job, threads: int) -> LoadReport:
    """Run wrk once. `program` is its path. WrkError."""
    threads = min(threads, job.connections)
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        script = _script(directory)
        argv = [
            program, f"-t{threads}", f"-c{job.connections}", f"-d{ceil(job.seconds) + _MORE_S}s",
            f"--timeout={_TIMEOUT_S}s", "-s", script, "-H", f"Host: {job.host}",
            *(("-H", "Connection: close") if job.kind == "connect" else ()),
            f"http://{job.address}{job.path}",
        ]  # fmt: skip
        out = await _output(argv, job.seconds)
    line = next((one for one in out.splitlines() if one.startswith(_MARK)), None)
    if line is None:
        raise WrkError(f"wrk: {out.strip().splitlines()[-1] if out.strip() else 'said nothing'}")
    return _report(json.loads(line.removeprefix(_MARK)), threads)


def _script(directory: str) -> str:
    path = Path(directory, "done.lua")
    path.write_text(_SCRIPT)
    return str(path)


async def _output(argv: list[str], seconds: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    loop = asyncio.get_running_loop()
    end = loop.call_later(seconds + _START_S, _interrupt, process)
    try:
        async with asyncio.timeout(seconds + _MORE_S + _SLACK_S):
            out, _ = await process.communicate()
    except TimeoutError:
        raise WrkError(f"{os.path.basename(argv[0])} did not end") from None  # noqa: PTH119
    finally:
        end.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode(errors="replace")


def _interrupt(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)


def _report(result: dict[str, Any], threads: int) -> LoadReport:
    seconds = result["us"] / 1e6
    counts: Counter[int] = Counter()
    for value, count in result["rows"]:
        counts[histogram.index(value / 1e6)] += count
    errors = {
        "connect": result["connect"],
        "reset": result["read"] + result["write"],
        "timeout": result["timeout"],
        "status": result["status"],
    }
    share = result["cpu_s"] / (seconds * threads) if seconds else 0.0
    return LoadReport(
        requests=max(0, result["requests"] - result["status"]),
        errors={kind: count for kind, count in errors.items() if count},
        seconds=seconds,
        histogram=dict(counts),
        worst_s=result["max_us"] / 1e6,
        cpu_share=share,
        limited=share > _MAX_CPU_SHARE,
    )
