"""The views of several proxies on each worker, combined: a worker is up if all proxies say so.

Each proxy checks the workers by itself, so proxies may disagree for a moment. There are two
questions. A roll-out or a readiness probe waits until *all* proxies would pick a worker. A new
proxy is told which workers *any* other proxy picks, because one good check is worth more than
none. A proxy that is away keeps its last view until its successor is configured. No I/O, no
clock.
"""

from collections.abc import Collection, Iterable
from typing import Final

from penstock_supervisor.children.plan import Slot

UP: Final = "up"
_READY: Final = (UP, "ejected")
"""States of a worker that passes its checks. Its traffic alone may have ejected it."""


class ProxyViews:
    """By slot of the worker and number of the proxy: a member state, as the proxy names it."""

    def __init__(self) -> None:
        self._states: dict[Slot, dict[int, str]] = {}

    def report(self, slot: Slot, proxy: int, state: str) -> None:
        self._states.setdefault(slot, {})[proxy] = state

    def proxy_started(self, proxy: int, up: Iterable[Slot]) -> None:
        """Begin anew with a new proxy, which was told only that these workers are up."""
        for by_proxy in self._states.values():
            by_proxy.pop(proxy, None)
        for slot in up:
            self.report(slot, proxy, UP)

    def forget(self, slot: Slot) -> None:
        """Forget all views of a slot: they are about a process that is or will be replaced."""
        self._states.pop(slot, None)

    def combined(self, slot: Slot, proxies: Collection[int]) -> str:
        """UP if all of `proxies` report UP; otherwise the first other state that one reports.

        "" if all that is missing is a report, or if there is no proxy.
        """
        states = [self._states.get(slot, {}).get(proxy, "") for proxy in proxies]
        not_up = [state for state in states if state != UP]
        if not not_up:
            return UP if states else ""
        return next((state for state in not_up if state), "")

    def is_up_anywhere(self, slot: Slot) -> bool:
        """At least one proxy reports UP."""
        return UP in self._states.get(slot, {}).values()

    def is_ready_anywhere(self, slot: Slot) -> bool:
        """At least one proxy reports that its checks pass."""
        return any(state in _READY for state in self._states.get(slot, {}).values())

    def services_up_at(self, proxy: int) -> set[str]:
        """The services that have a worker in this proxy's rotation."""
        return {
            service for (service, _), by_proxy in self._states.items() if by_proxy.get(proxy) == UP
        }
