"""Limits on clients, in a worker that clients connect to with no proxy in front.

Owns those limits and how they are passed in the environment. Under `ports` there is a proxy in
front of the worker with limits of its own, so none are passed. The worker then keeps an idle
connection longer than the proxy does. So the proxy closes first, and loses no request on a
connection that the worker has just closed. No I/O, no clock.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock_worker.contract import BOUNDS

BEHIND_PROXY_S: Final = 120.0
"""Longer than a proxy keeps an idle connection."""


class DirectLimits(NamedTuple):
    """The defaults are those behind a proxy."""

    direct: bool = False
    """Clients connect to the worker, and no proxy limits them."""
    connections: int = 0
    """Accepted connections that may be open; 0: as many as descriptors allow."""
    keepalive_s: float = BEHIND_PROXY_S
    """For a request head to be complete, from the connection's start or the last response."""
    log_field: int = 1024
    """Characters of one field of the access log."""


def format_limits(limits: DirectLimits) -> str:
    """The value of the variable."""
    return json.dumps(limits._asdict())


def parse_limits(environ: Mapping[str, str]) -> DirectLimits:
    """From the environment; the defaults without the variable. ValueError: a malformed value."""
    text = environ.get(BOUNDS)
    if text is None:
        return DirectLimits()
    try:
        direct, connections, keepalive_s, log_field = (
            json.loads(text)[key] for key in DirectLimits._fields
        )
        return DirectLimits(bool(direct), int(connections), float(keepalive_s), int(log_field))
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{BOUNDS}={text!r} says nothing") from None
