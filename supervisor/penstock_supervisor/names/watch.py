"""Looks the names of upstreams up again, each when it is due.

Owns when, what was found how often, and that it is logged once when a name is not found any more.
Whoever has the members is asked which names there are, and told what they stand for. Names are
looked up side by side: a name server that hangs delays its own names.

Must not know what follows for proxies.

See docs/decisions/0023-names.md.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from penstock_supervisor.config.upstream_address import Kind, UpstreamAddress, parse_upstream
from penstock_supervisor.names.answers import RESULTS, Endpoint, Found, LookupFailedError
from penstock_supervisor.names.lookup import Servers
from penstock_supervisor.names.membership import settle
from penstock_supervisor.names.schedule import HOLD_S, Schedule
from penstock_supervisor.snapshot import NameView

_LOOK_EVERY_S: Final = 0.5
"""For names that are due. The shortest TTL that is used is twice as long."""

_log = logging.getLogger("penstock.supervisor")


class Name(NamedTuple):
    """An upstream that is a name."""

    service: str
    upstream: str
    """As in the configuration: `dns:app.internal:9000`."""


class Members(Protocol):
    """Who has the members."""

    def names(self) -> tuple[Sequence[Name], Servers]:
        """Those that there are now, and who is to be asked."""

    def endpoints(self, name: Name) -> tuple[Endpoint, ...]:
        """What it stands for so far."""

    def change(self, name: Name, endpoints: tuple[Endpoint, ...]) -> None:
        """What it stands for from now on."""


class _Watched:
    """One name."""

    __slots__ = ("counts", "last_found_at", "schedule", "task", "upstream")

    def __init__(self, upstream: UpstreamAddress, now: float) -> None:
        self.upstream = upstream
        self.schedule = Schedule(now)
        self.task: asyncio.Task[None] | None = None
        self.counts: Counter[str] = Counter()
        self.last_found_at = 0.0


class NameWatch:
    """Made once for a run."""

    def __init__(
        self,
        look_up: Callable[[UpstreamAddress, Servers], Awaitable[Found]],
        members: Members,
        clock: Callable[[], float],
        time_of_day: Callable[[], float],
    ) -> None:
        self._look_up = look_up
        self._members = members
        self._clock = clock
        self._time_of_day = time_of_day
        self._watched: dict[Name, _Watched] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                servers = self._follow()
                now = self._clock()
                for name, one in self._watched.items():
                    if one.task is None and one.schedule.due <= now:
                        one.task = tasks.create_task(self._look_up_again(name, one, servers))
                await asyncio.sleep(_LOOK_EVERY_S)

    def views(self) -> tuple[NameView, ...]:
        return tuple(
            NameView(
                service=name.service,
                name=name.upstream,
                lookups={result: one.counts[result] for result in RESULTS},
                result=one.schedule.result,
                ttl_s=one.schedule.ttl_s,
                last_found_at=one.last_found_at,
                addresses=len(self._members.endpoints(name)),
            )
            for name, one in self._watched.items()
        )

    def _follow(self) -> Servers:
        """Watch the names that there are now."""
        names, servers = self._members.names()
        for name in self._watched.keys() - {*names}:
            if (task := self._watched.pop(name).task) is not None:
                task.cancel()
        for name in names:
            if name not in self._watched:
                self._watched[name] = _Watched(parse_upstream(name.upstream), self._clock())
        return servers

    async def _look_up_again(self, name: Name, one: _Watched, servers: Servers) -> None:
        try:
            await self._look_up_once(name, one, servers)
        except Exception:  # noqa: BLE001 — the one place for unexpected errors
            # A bug, ours or the library's, must not end the run.
            _log.warning("%s: %s: a bug of penstock", name.service, name.upstream, exc_info=True)
            one.counts["failed"] += 1
            one.schedule.failed("failed", self._clock())
        finally:
            one.task = None

    async def _look_up_once(self, name: Name, one: _Watched, servers: Servers) -> None:
        try:
            found = await self._look_up(one.upstream, servers)
        except LookupFailedError as error:
            self._failed(name, one, error)
        else:
            self._found(name, one, found)

    def _found(self, name: Name, one: _Watched, found: Found) -> None:
        one.counts["found"] += 1
        one.last_found_at = self._time_of_day()
        before = one.schedule.result
        if one.schedule.found(found.ttl_s, self._clock()) and before:
            _log.info("%s: %s is found again", name.service, name.upstream)
        present = self._members.endpoints(name)
        self._use(name, present, settle(one.upstream.kind, present, found))

    def _failed(self, name: Name, one: _Watched, error: LookupFailedError) -> None:
        one.counts[error.result] += 1
        now = self._clock()
        present = self._members.endpoints(name)
        if one.schedule.failed(error.result, now):
            _log.warning("%s: %s: %s; %s", name.service, name.upstream, error, _what_holds(present))
        # A plain name was promised to be one server, and keeps its last address.
        if one.upstream.kind is not Kind.NAME and one.schedule.is_gone(now) and present:
            _log.warning("%s: %s: nothing was found for %g s", name.service, name.upstream, HOLD_S)
            self._use(name, present, ())

    def _use(
        self, name: Name, present: tuple[Endpoint, ...], endpoints: tuple[Endpoint, ...]
    ) -> None:
        if endpoints != present:
            self._members.change(name, endpoints)


def _what_holds(present: Sequence[Endpoint]) -> str:
    if not present:
        return "it has no member, and is looked up again"
    stay = "its member stays" if len(present) == 1 else f"its {len(present)} members stay"
    return f"{stay}, and it is looked up again"
