"""Measures steps of the data path in nanoseconds: `make bench`.

Each case is one step of a request, without sockets, event loop or a client that has to keep up.
So a commit that makes a step slower is seen, although the noise of a whole benchmark would hide
it. The median of many short rounds is printed, because noise only makes rounds slower. No test
checks these numbers; compare them yourself:

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
"""Long enough that reading the clock does not matter, short enough that most rounds run
without an interruption."""


def measure(step: Callable[[], object]) -> float:
    """Median nanoseconds of one call."""
    count = _calls(step)
    return median(_timed(step, count) / count for _ in range(ROUNDS))


def _calls(step: Callable[[], object]) -> int:
    """How many calls make a round. Finding it out also warms up the step."""
    count = 1
    while (elapsed := _timed(step, count)) < ROUND_NS // 2:
        count *= 2
    return max(1, count * ROUND_NS // elapsed)


def _timed(step: Callable[[], object], count: int) -> int:
    """Nanoseconds of so many calls."""
    calls = range(count)
    start = perf_counter_ns()
    for _ in calls:
        step()
    return perf_counter_ns() - start


def _line(name: str, nanoseconds: float, baseline: Mapping[str, float]) -> str:
    change = f"{nanoseconds / baseline[name] - 1:+9.1%}" if name in baseline else ""
    return f"{name:<44}{nanoseconds:>10.0f} ns{change}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Nanoseconds of the hot path.")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with a saved FILE")
    parser.add_argument("only", nargs="?", default="", help="cases whose names contain this")
    options = parser.parse_args()
    baseline = json.loads(options.baseline.read_text()) if options.baseline else {}
    results: dict[str, float] = {}
    for name, case in CASES.items():
        if options.only in name:
            with case() as step:
                results[name] = measure(step)
            print(_line(name, results[name], baseline), flush=True)
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
