"""Runs both fuzzers at the same time, for `make fuzz` and for the test.

Each is its own process (libFuzzer ends its process). It starts with the corpus and keeps new
inputs in `folder`, so that the next run by hand continues from there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

NAMES: Final = ("requests", "responses")
_HERE: Final = Path(__file__).parent
_GRACE_S: Final = 120
"""Time in addition: the corpus is replayed first, and a busy machine is slow."""


class Result(NamedTuple):
    name: str
    executions: int
    found: bool
    output: str


def run(seconds: int, seed: int, folder: Path) -> list[Result]:
    """Fuzz for so many seconds (0: until interrupted); `seed` 0: a random one."""
    processes = [_start(name, seconds, seed, folder) for name in NAMES]
    results, interrupted = [], False
    try:
        for name, process in zip(NAMES, processes, strict=True):
            try:
                process.wait(seconds + _GRACE_S if seconds else None)
            except KeyboardInterrupt:
                interrupted = True  # the fuzzers as well
                process.wait(_GRACE_S)
            output = _log(folder, name).read_text(errors="replace")
            counts = re.findall(r"number_of_executed_units: (\d+)|(?m:^#(\d+)\b)", output)
            executions = int("".join(counts[-1])) if counts else 0
            found = "Test unit written" in output or (process.returncode != 0 and not interrupted)
            results.append(Result(name, executions, found, output))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return results


def _start(name: str, seconds: int, seed: int, folder: Path) -> "subprocess.Popen[bytes]":
    learned = folder / name
    learned.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable, "-m", "tests.fuzz", name,
        f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1", "-reload=0",
        f"-dict={_HERE / 'http.dict'}", f"-artifact_prefix={folder}/found-{name}-",
        str(learned), str(_HERE / "corpus" / name),
    ]  # fmt: skip
    with _log(folder, name).open("wb") as log:
        return subprocess.Popen(
            words,
            cwd=_HERE.parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def main() -> None:
    """Run by hand: SECONDS (60) and SEED (0) from the environment, all files in `.fuzz`."""
    seconds, seed = (
        int(os.environ.get(name, usual)) for name, usual in (("SECONDS", 60), ("SEED", 0))
    )
    results = run(seconds, seed, Path(".fuzz"))
    for result in results:
        print(result.output[-3000:] if result.found else "", end="")
    for result in results:
        end = "found something, see .fuzz" if result.found else "found nothing"
        print(f"{result.name}: {result.executions} executions, {end}")
    sys.exit(any(result.found for result in results))


if __name__ == "__main__":
    main()
