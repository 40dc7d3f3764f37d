"""What each scheme is good for, whatever is measured: how it is made decides it.

Owns the words of "choose it". They are the same in every result, so no noise can change them.
What a scheme costs is measured, and said by `sentences`. A peer, and an address that somebody else
serves, have no words here: nobody knows what they do. No I/O, no clock.
"""

from typing import Final

from penstock_supervisor.compare.report.result import Subject

_CHOOSE: Final = {
    "ports/http": "when each request is to be balanced, checked, and tried once more on another "
    "worker if one dies; the program need not know of it",
    "ports/http/tcp": "for what ports/http is chosen for, when the program can be reached at a "
    "port only",
    "ports/tcp": "when the protocol is not HTTP, or no byte may be changed; the program need not "
    "know of it",
    "handoff": "when long or busy connections are to be spread by a policy, and no byte of them "
    "is to pass a proxy",
    "shared": "when there is to be no proxy at all, and the kernel may wake whichever worker is "
    "free",
    "reuseport": "when there is to be no proxy at all, and the kernel is to spread connections "
    "evenly by their hash; what waits for a busy worker goes to no other",
}
"""By the name of the variant, after "Choose it"."""


def choose_when(subject: Subject) -> str:
    """A whole sentence; "" if nothing is known of it."""
    words = _CHOOSE.get(subject.name) if subject.scheme else None
    return f"Choose it {words}." if words else ""
