"""What follows when a name of an upstream stands for other addresses than before.

Members join and leave the pools of all proxies while everything runs, beside any roll-out: the
proxies are told all upstreams of the service each time, so that what is told last holds. A member
that joins is picked after its first good check, one that leaves finishes what it has
(`penstock_proxy.runtime.upstreams`).

Must not know how and when a name is looked up (`names.watch`).
"""

import logging
from collections.abc import Sequence
from typing import Final

from penstock_proxy.config_parts import parts_of_targets
from penstock_proxy.messages import UPSTREAMS
from penstock_supervisor.names.answers import Endpoint
from penstock_supervisor.names.lookup import Servers
from penstock_supervisor.names.upstream_member import UpstreamMember
from penstock_supervisor.names.watch import Name
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.upstream_members import MAX_NAMED
from penstock_supervisor.rotation.rotation import Rotation

_MOST_TOLD: Final = 8
"""Members in a line of the log. All of them are in the status."""

_log = logging.getLogger("penstock.supervisor")


class UpstreamChanges:
    """Made once for a run."""

    def __init__(
        self, resources: Resources, proxies: Proxies, rotation: Rotation, condition: Condition
    ) -> None:
        self._resources = resources
        self._proxies = proxies
        self._rotation = rotation
        self._condition = condition
        self._cut = set[Name]()
        """Names of which some addresses are not used."""

    # As `names.watch.Members`.

    def names(self) -> tuple[Sequence[Name], Servers]:
        resources = self._resources
        names = resources.upstreams.names(resources.present_services())
        return [Name(*one) for one in names], resources.config.dns.servers

    def endpoints(self, name: Name) -> tuple[Endpoint, ...]:
        return self._resources.upstreams.endpoints(*name)

    def change(self, name: Name, endpoints: tuple[Endpoint, ...]) -> None:
        resources, service = self._resources, name.service
        if not resources.upstreams.is_known(*name):
            # A reload has taken it away while it was looked up.
            return
        change = resources.upstreams.change(*name, endpoints)
        self._note_left_out(name, change.left_out)
        if not change.is_any:
            return
        for member in change.left:
            self._rotation.upstream_left((service, member.number))
        _say(name, "joins", "join", change.joined)
        _say(name, "leaves", "leave", change.left)
        targets = [
            one.target(up=self._rotation.is_up_anywhere((service, one.number)))
            for one in resources.upstreams.of(service)
        ]
        message = {"cmd": UPSTREAMS, "service": service}
        self._proxies.send_each_to_all((*parts_of_targets(targets), message))
        self._condition.notify()

    def _note_left_out(self, name: Name, count: int) -> None:
        """Once, and again when there was room meanwhile."""
        if not count:
            self._cut.discard(name)
        elif name not in self._cut:
            self._cut.add(name)
            text = "%s: %s: %d addresses are not used: names have %d members in all already"
            _log.warning(text, name.service, name.upstream, count, MAX_NAMED)


def _say(name: Name, one: str, several: str, members: Sequence[UpstreamMember]) -> None:
    if members:
        shown = [str(member.address) for member in members[:_MOST_TOLD]]
        if (more := len(members) - _MOST_TOLD) > 0:
            shown.append(f"and {more} more")
        verb = one if len(members) == 1 else several
        _log.info("%s: %s: %s %s", name.service, name.upstream, ", ".join(shown), verb)
