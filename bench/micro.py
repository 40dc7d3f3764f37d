"""What the hot path costs, in nanoseconds: `make bench`.

Each case is one step of a request with nothing around it: no socket, no event loop, no
client that has to keep up. So a commit that makes a step slower is seen although the noise
of a whole benchmark would hide it. The median of many short rounds is printed, since noise
only ever adds; no test looks at these numbers, a person does:

    make bench ARGS="--save before.json"
    make bench ARGS="--baseline before.json"
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Final

from cases import CASES

ROUNDS: Final = 21
ROUND_NS: Final = 10_000_000
"""Long enough for the clock not to matter, short enough to fit between two interruptions."""


def measure(step: Callable[[], object]) -> float:
    """Median nanoseconds of one call."""
    count = _calls(step)
    return median(_timed(step, count) / count for _ in range(ROUNDS))


def _calls(step: Callable[[], object]) -> int:
    """How many calls make a round; trying it out also warms the step up."""
    count = 1
    while (spent := _timed(step, count)) < ROUND_NS // 2:
        count *= 2
    return max(1, count * ROUND_NS // spent)


def _timed(step: Callable[[], object], count: int) -> int:
    turns = range(count)
    start = perf_counter_ns()
    for _ in turns:
        step()
    return perf_counter_ns() - start


def _line(name: str, found: float, before: Mapping[str, float]) -> str:
    change = f"{found / before[name] - 1:+9.1%}" if name in before else ""
    return f"{name:<44}{found:>10.0f} ns{change}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Nanoseconds of the hot path.")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with a saved FILE")
    parser.add_argument("only", nargs="?", default="", help="cases whose names contain this")
    options = parser.parse_args()
    before = json.loads(options.baseline.read_text()) if options.baseline else {}
    found: dict[str, float] = {}
    for name, case in CASES.items():
        if options.only in name:
            with case() as step:
                found[name] = measure(step)
            print(_line(name, found[name], before), flush=True)
    if options.save:
        options.save.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
