"""The views of several proxies on each worker, combined: a worker is up if all proxies say so.

Each proxy checks the workers by itself, so proxies may disagree for a moment. There are two
questions. A roll-out or a readiness probe waits until *all* proxies would pick a worker. A new
proxy is told which workers *any* other proxy picks, because one good check is worth more than
none. A proxy that is away keeps its last view until its successor is configured. No I/O, no
clock.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, TypeGuard

from penstock_supervisor.children.plan import MemberKey

UP: Final = "up"
OUT: Final = ("down", "ejected")
"""States of a worker that its checks or its traffic have taken out of the rotation."""
_EJECTED: Final = "ejected"
_READY: Final = (UP, _EJECTED)
"""States of a worker that passes its checks. Its traffic alone may have ejected it."""

Recent = Sequence[tuple[int, int, int]]
"""Number, failures and requests of each member of a service, since one of them came in."""


def is_recent(value: object) -> TypeGuard[Recent]:
    """Has a proxy sent what it should?"""
    return isinstance(value, list) and all(
        isinstance(row, list) and [type(one) for one in row] == [int] * 3 for row in value
    )


class ProxyViews:
    """By member and number of the proxy: a member state, as the proxy names it."""

    def __init__(self) -> None:
        self._states: dict[MemberKey, dict[int, str]] = {}
        self._reasons: dict[MemberKey, str] = {}
        """Why a member is not up, as the last proxy that says so has put it."""
        self._recent: dict[MemberKey, dict[int, Recent]] = {}
        """What a proxy has said with its last ejection."""
        self._found_ready: set[MemberKey] = set()
        """Members that a proxy has reported as ready since somebody asked for that last."""

    def report(
        self, member: MemberKey, proxy: int, state: str, reason: str = "", recent: Recent = ()
    ) -> None:
        """`recent`: of one that is ejected, what it and all others had at this proxy."""
        self._states.setdefault(member, {})[proxy] = state
        if state in _READY:
            self._found_ready.add(member)
        if state == _EJECTED:
            self._recent.setdefault(member, {})[proxy] = recent
        if state != UP and reason:
            self._reasons[member] = _ejected(reason) if state == _EJECTED else reason

    def reason(self, member: MemberKey) -> str:
        """Why it is not up; empty: nobody has said so."""
        return self._reasons.get(member, "")

    def proxy_started(self, proxy: int, up: Iterable[MemberKey]) -> None:
        """Begin anew with a new proxy, which was told only that these workers are up."""
        for by_proxy in self._states.values():
            by_proxy.pop(proxy, None)
        for member in up:
            self.report(member, proxy, UP)

    def forget(self, member: MemberKey) -> None:
        """Forget all views of a member: its process is gone, or told to go."""
        self._states.pop(member, None)
        self._reasons.pop(member, None)
        self._recent.pop(member, None)
        self._found_ready.discard(member)

    def combined(self, member: MemberKey, proxies: Collection[int]) -> str:
        """UP if all of `proxies` report UP; otherwise the first other state that one reports.

        "" if all that is missing is a report, or if there is no proxy.
        """
        states = [self._states.get(member, {}).get(proxy, "") for proxy in proxies]
        not_up = [state for state in states if state != UP]
        if not not_up:
            return UP if states else ""
        return next((state for state in not_up if state), "")

    def ejection(self, member: MemberKey, proxies: Collection[int]) -> Recent | None:
        """What it and all others had where it is ejected; None: nowhere, or that is not all."""
        views = self._states.get(member, {})
        states = {views.get(proxy, "") for proxy in proxies}
        if _EJECTED not in states or not states <= {*_READY, ""}:
            return None
        recent = self._recent.get(member, {})
        return [row for by in proxies if views.get(by) == _EJECTED for row in recent.get(by, ())]

    def __iter__(self) -> Iterator[MemberKey]:
        """All members that anybody has reported."""
        return iter(tuple(self._states))

    def __contains__(self, member: object) -> bool:
        return member in self._states

    def is_up_at(self, member: MemberKey, proxy: int) -> bool:
        return self._states.get(member, {}).get(proxy) == UP

    def is_up_anywhere(self, member: MemberKey) -> bool:
        """At least one proxy reports UP."""
        return UP in self._states.get(member, {}).values()

    def take_ready_anywhere(self, member: MemberKey) -> bool:
        """At least one proxy reports that its checks pass, or has done so since this was asked
        last: who asks now and then would not see what is ready for a moment each time."""
        was_ready = member in self._found_ready
        self._found_ready.discard(member)
        return was_ready or any(state in _READY for state in self._states.get(member, {}).values())

    def services_up_at(self, proxy: int) -> set[str]:
        """The services that have a worker in this proxy's rotation."""
        return {
            service for (service, _), by_proxy in self._states.items() if by_proxy.get(proxy) == UP
        }


def _ejected(reason: str) -> str:
    """Why, of a proxy's "for 10 s, after 5 failures in a row": without the word before it the
    first part says nothing."""
    cause = reason.partition(", after ")[2] or reason
    return f"its requests failed ({cause}), so it was ejected"
