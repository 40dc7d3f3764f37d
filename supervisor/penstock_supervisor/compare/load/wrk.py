"""wrk in place of our own generator, for who trusts what they know.

It has no constant rate and speaks to TCP ports only: what it cannot do is left to ours. A
script that it runs at its end prints the whole histogram, because its own output has only a
few points of it. Before that, wrk itself adds to the histogram the answers that a slow one
kept it from asking for; ours does so for a constant rate only. And it starts its clock when a
connection is there, ours when one is wanted. So latencies of the two are not to be compared
with each other.
"""

import asyncio
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare.load.driver import Job, Report
from penstock_supervisor.compare.report import histogram

_TIMEOUT_S: Final = 5
"""As our own generator's."""
_SLACK_S: Final = 15.0
_LIMIT: Final = 0.9
"""Share of its threads' time that it may use before it counts as the limit."""
_MARK: Final = "penstock "
_SCRIPT: Final = """\
function done(summary, latency, requests)
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
    os.clock(), table.concat(rows, ",")))
end
"""


class WrkError(Exception):
    """It did not do what it should. One line for people."""


def can(job: Job) -> bool:
    """Is it a load that wrk makes?"""
    return job.kind != "rate" and not parse_address(job.address).path


async def drive(program: str, job: Job, threads: int) -> Report:
    """Run it once. WrkError."""
    threads = min(threads, job.connections)
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        script = _script(directory)
        argv = [
            program, f"-t{threads}", f"-c{job.connections}", f"-d{max(1, round(job.seconds))}s",
            f"--timeout={_TIMEOUT_S}s", "-s", script, "-H", f"Host: {job.host}",
            *(("-H", "Connection: close") if job.kind == "connect" else ()),
            f"http://{job.address}{job.path}",
        ]  # fmt: skip
        out = await _output(argv, job.seconds + _SLACK_S)
    line = next((one for one in out.splitlines() if one.startswith(_MARK)), None)
    if line is None:
        raise WrkError(f"wrk: {out.strip().splitlines()[-1] if out.strip() else 'said nothing'}")
    return _report(json.loads(line.removeprefix(_MARK)), threads)


def _script(directory: str) -> str:
    path = Path(directory, "done.lua")
    path.write_text(_SCRIPT)
    return str(path)


async def _output(argv: list[str], most_s: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(most_s):
            out, _ = await process.communicate()
    except TimeoutError:
        raise WrkError(f"{os.path.basename(argv[0])} did not end") from None  # noqa: PTH119
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode(errors="replace")


def _report(said: dict[str, Any], threads: int) -> Report:
    seconds = said["us"] / 1e6
    counts: Counter[int] = Counter()
    for value, count in said["rows"]:
        counts[histogram.index(value / 1e6)] += count
    errors = {
        "connect": said["connect"],
        "reset": said["read"] + said["write"],
        "timeout": said["timeout"],
        "status": said["status"],
    }
    share = said["cpu_s"] / (seconds * threads) if seconds else 0.0
    return Report(
        requests=max(0, said["requests"] - said["status"]),
        errors={kind: count for kind, count in errors.items() if count},
        seconds=seconds,
        histogram=dict(counts),
        worst_s=said["max_us"] / 1e6,
        cpu_share=share,
        limited=share > _LIMIT,
    )
