"""One connection over a link, without waiting for others to be sent with it."""

from penstock_proxy.handoff.link import Link


def send(link: Link, fd: int, now: float) -> bool:
    """Send it and close our copy; False if the link cannot take it now."""
    link.enqueue(fd)
    return not link.flush(now)
