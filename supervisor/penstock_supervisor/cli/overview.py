"""What `penstock status` prints of a run's /status: a line for each process or upstream.

Owns the words and the columns, and nothing else: no I/O, no clock. A worker has two sides,
what the supervisor says of its process and what the front (or the watch) says of its place in
the rotation; the second is told only where it is not what one expects of the first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_SERVING: Final = "up"


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    state = "stopping" if found["stopping"] else "ready" if found["ready"] else "not ready"
    up = _duration(found["uptime"])
    yield f"penstock {found['version']}, pid {found['pid']}, up {up}, {state}"
    yield from _table([_row(f"front/{front['slot']}", front) for front in found["fronts"]])
    for name, service in found["services"].items():
        yield f"{name} on {service['listen']} ({service['scheme']}, {service['mode']})"
        yield from _table([_row(f"{name}/{one['slot']}", one) for one in service["workers"]])


def _row(name: str, child: Mapping[str, Any]) -> tuple[str, ...]:
    # An upstream has no process of ours; a front is in no rotation.
    restarts = sum((child.get("restarts") or {}).values())
    standing = child.get("standing")
    return (
        name,
        ", ".join(_words(child)),
        "" if child.get("pid") is None else f"pid {child['pid']}",
        child.get("address") or "",
        f"{restarts} restart{'s' * (restarts != 1)}" if restarts else "",
        "" if standing in (None, _SERVING) else child.get("reason") or "",
    )


def _words(child: Mapping[str, Any]) -> Iterator[str]:
    state, standing = child.get("state"), child.get("standing")
    yield (state or standing or "unknown").replace("_", " ")
    if state == _SERVING and standing not in (None, _SERVING):
        yield standing
    # Fronts only: of a worker it means nothing, since most programs know no such question.
    if "covered" in child and state == _SERVING and not child.get("answers"):
        yield "does not answer"
    if child.get("covered"):
        yield "covered by the others"


def _duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        yield f"  {'  '.join(cells)}".rstrip()
