"""What several proxies say of each worker, as one: in the rotation when it is in everybody's.

Each proxy checks by itself and may know better than the others for a moment. Whoever waits
for a worker (a replacement, a readiness probe) wants to know that *all* proxies would pick it;
whoever starts a new proxy tells it whom *any* of the others picks, for one good check is
worth more than none. A proxy that is away keeps its last view until its successor is
told something else. No I/O, no clock.
"""

from collections.abc import Collection, Iterable
from typing import Final

from penstock_supervisor.children.plan import Slot

UP: Final = "up"


class ProxyViews:
    """By slot and number of the proxy: a state, as the proxy's pool names it."""

    def __init__(self) -> None:
        self._of: dict[Slot, dict[int, str]] = {}

    def report(self, slot: Slot, proxy: int, state: str) -> None:
        self._of.setdefault(slot, {})[proxy] = state

    def begin(self, proxy: int, up: Iterable[Slot]) -> None:
        """A new proxy in this slot believes that these are up, and of the others nothing."""
        for said in self._of.values():
            said.pop(proxy, None)
        for slot in up:
            self.report(slot, proxy, UP)

    def forget(self, slot: Slot) -> None:
        """Another process is in the slot, or will be: nothing that was said is about it."""
        self._of.pop(slot, None)

    def merged(self, slot: Slot, proxies: Collection[int]) -> str:
        """UP if all of `proxies` say so, otherwise what the first says that does not; "" if it
        is only that somebody has not said anything yet, or that there is no proxy."""
        said = [self._of.get(slot, {}).get(proxy, "") for proxy in proxies]
        others = [state for state in said if state != UP]
        if not others:
            return UP if said else ""
        return next((state for state in others if state), "")

    def is_up_anywhere(self, slot: Slot) -> bool:
        return UP in self._of.get(slot, {}).values()

    def serving(self, proxy: int) -> set[str]:
        """The services of which this proxy has anybody in rotation."""
        return {service for (service, _), said in self._of.items() if said.get(proxy) == UP}
