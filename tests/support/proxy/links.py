"""Sends one connection over a link at once; the proxy may send several together."""

from penstock_proxy.handoff.link import Link


def sent(link: Link, fd: int, now: float) -> bool:
    """Send a descriptor and close our copy; False if the link is full."""
    link.put(fd)
    return not link.flush(now)
