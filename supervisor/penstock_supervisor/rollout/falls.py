"""Has a new process fallen out of the rotation because of what it is?

Owns the difference between two reasons to be out. Who fails its checks has fallen. Who is ejected
for its traffic may be no worse than the version before: a client that asks again and again for what
fails under both would otherwise abort every roll-out. So an ejection is held against a process
only if it failed more of its requests than the workers of the old version failed at the same time
(`canary`). One that is not neither ends a step nor begins its time anew: the proxy brings it back
by itself.

The proxies say with each ejection what everybody had, so nobody has to be asked. When no worker of
the old version is left, what was last known of them counts. Must not know what follows from a fall.
No I/O, no clock.
"""

from collections.abc import Callable, Collection, Iterable

from penstock_supervisor.children.child import Child
from penstock_supervisor.rollout.canary import NOTHING, Counts, fails_more
from penstock_supervisor.rotation.proxy_views import Recent
from penstock_supervisor.rotation.rotation import Rotation


class Falls:
    """`started(service)`: the members that are of the new version."""

    def __init__(self, rotation: Rotation, started: Callable[[str], Collection[int]]) -> None:
        self._rotation = rotation
        self._started = started
        self._old: dict[str, Counts] = {}
        """By service: what was last known of the workers of the old version."""

    def forget(self) -> None:
        """Another version is the old one from now on."""
        self._old.clear()

    def changed(self, child: Child) -> None:
        """It may have been ejected, of whichever version it is."""
        if (recent := self._rotation.ejection(child)) is not None:
            service = child.plan.service
            old = _sum(recent, without=self._started(service))
            if old.requests:
                self._old[service] = old

    def has_fallen(self, child: Child) -> bool:
        """Is it out of the rotation by its own fault?"""
        if not self._rotation.has_fallen(child):
            return False
        recent = self._rotation.ejection(child)
        return recent is None or self._is_worse(child, recent)

    def is_excused(self, child: Child) -> bool:
        """Is it ejected for what fails under the old version as well?"""
        return self._rotation.has_fallen(child) and not self.has_fallen(child)

    def serves(self, child: Child) -> bool:
        """Is it in every rotation, but where that is not its own fault?"""
        return self._rotation.is_up(child) or self.is_excused(child)

    def _is_worse(self, child: Child, recent: Recent) -> bool:
        service = child.plan.service
        ours = _sum(row for row in recent if row[0] == child.number)
        theirs = _sum(recent, without={child.number, *self._started(service)})
        return fails_more(ours, theirs if theirs.requests else self._old.get(service, NOTHING))


def _sum(recent: Iterable[tuple[int, int, int]], without: Collection[int] = ()) -> Counts:
    total = NOTHING
    for number, failed, requests in recent:
        if number not in without:
            total = total.plus(Counts(requests, failed))
    return total
