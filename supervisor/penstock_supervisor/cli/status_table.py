"""What `penstock status` prints of a run: its roll-outs, and the rows of `summary` in columns.

No I/O.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from penstock_supervisor.control import rollouts, summary


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"penstock {status['version']}, {summary.heading(status)}"
    yield from (f"  {line}" for line in rollouts.lines(status))
    yield from _table(summary.proxies(status))
    for name, service in status["services"].items():
        yield f"{name} on {service['listen']} ({service['scheme']}, {service['mode']})"
        yield from _table(summary.workers(name, service))


def _table(rows: Iterable[summary.SummaryRow]) -> Iterator[str]:
    cells = [
        (
            row.name, row.state, row.process, row.age, row.memory, row.fds, row.address,
            row.restarts, row.reason,
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        shown = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        yield f"  {'  '.join(shown)}".rstrip()
