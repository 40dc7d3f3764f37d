"""What strangers may take of a worker that serves them itself.

Owns the few bounds that hold there, and how a worker is told them. Under `ports` a front
stands before it that has bounds of its own, so nothing is said, and the worker is patient: who
closes an idle connection first decides who gets the race between the close and the next
request, and only the front can retry. No I/O, no clock.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock_worker.contract import BOUNDS

BEHIND_PROXY_S: Final = 120.0
"""Longer than a front keeps an idle connection."""


class Bounds(NamedTuple):
    """Without a word of it: those behind a front."""

    direct: bool = False
    """Clients are served by the worker, and nobody before it bounds them."""
    connections: int = 0
    """That it accepted and are open; 0: as many as descriptors allow."""
    keepalive_s: float = BEHIND_PROXY_S
    """Without a request: between two, and until the head of one is complete."""
    log_field: int = 1024
    """Characters of one field of the access log."""


def written(bounds: Bounds) -> str:
    """As in the environment."""
    return json.dumps(bounds._asdict())


def parse_limits(environ: Mapping[str, str]) -> Bounds:
    """ValueError: it is not said as we would."""
    text = environ.get(BOUNDS)
    if text is None:
        return Bounds()
    try:
        direct, connections, keepalive_s, log_field = (
            json.loads(text)[key] for key in Bounds._fields
        )
        return Bounds(bool(direct), int(connections), float(keepalive_s), int(log_field))
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{BOUNDS}={text!r} says nothing") from None
