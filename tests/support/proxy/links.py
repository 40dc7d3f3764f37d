"""A connection over a link on its own: as the proxy does it, but for waiting for others."""

from penstock_proxy.handoff.link import Link


def sent(link: Link, fd: int, now: float) -> bool:
    """Send it and close our copy; False if the link cannot take it now."""
    link.put(fd)
    return not link.flush(now)
