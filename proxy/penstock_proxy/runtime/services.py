"""All services of a process: made at its start, changed, added and removed while it runs.

Owns: the services by name, what they share, the tasks of their health checks, and those that are
leaving. A changed configuration is carried out in two steps. First all that can fail is done and
nothing is changed; then nothing can fail. Must not know: messages, and when the process ends.

A service's connections are never closed because its configuration has changed, except where the
client would have to speak otherwise: what was accepted without TLS, or for workers that expect
another PROXY header, is closed between two requests.
"""

import asyncio
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from penstock_proxy.balancing.check_schedule import CheckSchedule
from penstock_proxy.balancing.outlier_detection import Recent
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import ProxyConfig, ServiceConfig, Target
from penstock_proxy.listener.overload import Sharing
from penstock_proxy.metrics import Series, merge
from penstock_proxy.net.address import parse_address
from penstock_proxy.net.connector import socket_address
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.access_logs import AccessLogs, OpenedLog, is_same_log
from penstock_proxy.runtime.cuts import Cuts
from penstock_proxy.runtime.leaving import LeavingService
from penstock_proxy.runtime.scheduling import Scheduling
from penstock_proxy.runtime.service import Service
from penstock_proxy.runtime.upstreams import Upstreams
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net import lingering_close

LAST_CLOSE_S: Final = 1.0
"""When the rest was cut: for clients to take what they were sent last."""


class CannotChangeError(Exception):
    """A configuration that a running process cannot take. Nothing was changed."""


class Reports:
    """What services report. Each has the name of the service first."""

    def rotation_changed(self, service: str, member: Member, reason: str, recent: Recent) -> None:
        """A worker entered or left the rotation."""
        raise NotImplementedError

    def check_answered(self, service: str, member: Member, answered: bool) -> None:
        """As `HealthChecker` says."""
        raise NotImplementedError

    def crowded(self, service: str, count: int) -> None:
        """Under handoff: so many wait for a place that workers have to make."""
        raise NotImplementedError


class Shared(NamedTuple):
    """What all services of a process share."""

    loop: asyncio.AbstractEventLoop
    reactor: Reactor
    timers: TimerWheel
    fd_budget: FdBudget
    spare: lingering_close.SpareDescriptor
    cuts: Cuts
    reports: Reports


class _Entry(NamedTuple):
    """One service, and what changes it."""

    service: Service
    upstreams: Upstreams


class Services:
    """The services of one process."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.by_name: dict[str, Service] = {}
        self.leaving: list[LeavingService] = []
        self.accepting = False
        """The listeners listen."""
        self._entries: dict[str, _Entry] = {}
        self._logs = AccessLogs(shared.loop, shared.fd_budget)
        self._sharing = Sharing()
        self._check_schedule = CheckSchedule(shared.loop)
        self._scheduling = Scheduling()
        self._group: asyncio.TaskGroup | None = None
        """While `run_checks` runs."""
        self._checks: dict[Service, asyncio.Task[None]] = {}
        self._departed: dict[str, Series] = {}
        """What services had counted that are gone, by name."""

    # -- the configuration

    def configuring(self, config: ProxyConfig) -> Iterator[None]:
        """Make the services, for the first time, one service or member in each step. OSError: a
        log cannot be opened."""
        for one in config.services:
            # Who is up was told by the supervisor, and is not told to it.
            yield from self._adding(one, self._logs.open(one), tells_rotation=False)
        yield from self._connecting()

    def reconfiguring(self, config: ProxyConfig, finish_s: Mapping[str, float]) -> Iterator[None]:
        """Bring all services to this configuration, a part in each step. New ones get their
        listeners later. No other change may begin before this one has ended.

        `finish_s`: by the name of a service that is removed, the seconds after which the rest is
        cut; by default its own `timeouts.stop`. OSError, CannotChangeError: nothing was changed.
        """
        wanted = {one.name: one for one in config.services}
        for name, one in wanted.items():
            if name in self.by_name:
                _refuse_other_kind(self.by_name[name].config, one)
            yield from _checking_addresses(one.targets)
        logs = yield from self._opening_logs(wanted)
        for name in self.by_name.keys() - wanted.keys():
            service = self.by_name[name]
            yield from self._removing(name, finish_s.get(name, service.timeouts.stop))
        for name, one in wanted.items():
            if name not in self.by_name:
                yield from self._adding(one.model_copy(update={"listeners": ()}), logs[name])
            else:
                yield from self._changing(self._entries[name], one, logs.get(name))
        yield from self._connecting()

    def changing_upstreams(self, name: str, targets: Sequence[Target]) -> Iterator[None]:
        """A service has these upstreams from now on; one in each step. OSError: one of them has no
        address, and nothing was changed."""
        if (entry := self._entries.get(name)) is not None:
            yield from _checking_addresses(targets)
            yield from entry.upstreams.updating(targets, self._shared.timers.now)
            yield from entry.service.configuring_checks(targets)

    def _opening_logs(
        self, wanted: Mapping[str, ServiceConfig]
    ) -> Generator[None, None, dict[str, OpenedLog]]:
        """The logs of new services, and of those whose log is another one from now on."""
        opened: dict[str, OpenedLog] = {}
        try:
            for name, config in wanted.items():
                present = self.by_name.get(name)
                if present is None or not is_same_log(present.wanted, config):
                    opened[name] = self._logs.open(config)
                yield
            self._shared.fd_budget.check()
        except OSError:
            for one in opened.values():
                self._logs.discard(one)
            raise
        return opened

    def _adding(
        self, config: ServiceConfig, opened: OpenedLog, *, tells_rotation: bool = True
    ) -> Iterator[None]:
        self._add(config.model_copy(update={"targets": ()}), opened)
        yield
        service = self.by_name[config.name]
        for target in config.targets:
            service.add_member(target, tells_rotation=tells_rotation)
            yield
        service.wanted = config

    def _add(self, config: ServiceConfig, opened: OpenedLog) -> None:
        name, shared = config.name, self._shared
        service = Service(
            shared.loop,
            shared.reactor,
            config,
            shared.timers,
            shared.fd_budget,
            opened.log,
            partial(shared.reports.rotation_changed, name),
            partial(shared.reports.check_answered, name),
            self._check_schedule,
        )
        service.overload.spare = shared.spare
        service.overload.on_crowded = partial(shared.reports.crowded, name)
        service.overload.share(self._sharing)
        self.by_name[name] = service
        self._entries[name] = _Entry(service, Upstreams(service, shared.cuts))
        if self.accepting:
            service.start()
        if self._group is not None:
            self._start_checks(service, self._group)

    def _changing(
        self, entry: _Entry, config: ServiceConfig, opened: OpenedLog | None
    ) -> Iterator[None]:
        service = entry.service
        before = service.wanted
        if _settings(before) != _settings(config):
            yield from service.configuring(config)
        yield from entry.upstreams.updating(config.targets, self._shared.timers.now)
        yield from service.configuring_checks(config.targets)
        if opened is not None:
            self._logs.exchange(service, opened, before)
        yield

    def _removing(self, name: str, finish_s: float) -> Iterator[None]:
        del self._entries[name]
        service, shared = self.by_name.pop(name), self._shared
        leaving = LeavingService(service, shared.cuts, shared.timers.now, finish_s, LAST_CLOSE_S)
        self.leaving.append(leaving)
        return leaving.draining()

    def _connecting(self) -> Iterator[None]:
        """Some services have come, gone or changed: what depends on all of them, one in each
        step."""
        chains = {name: service.filter_chain for name, service in self.by_name.items()}
        for service in tuple(self.by_name.values()):
            service.filter_chain.set_sni_routes(chains)
            yield
        if self.by_name:
            self._scheduling.let_workers_finish(
                all(one.config.scheme == "handoff" for one in self.by_name.values())
            )

    # -- while the process runs

    def starting(self) -> Iterator[None]:
        """The listeners listen: accept from now on; one service in each step."""
        self.accepting = True
        for service in self.by_name.values():
            service.start()
            yield

    async def run_checks(self, finished: "asyncio.Future[int]") -> None:
        """Check the workers of all services until the process ends."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._start_all_checks(group)
            await asyncio.wait({finished})
            self._group = None
            for check in self._checks.values():
                check.cancel()

    def _start_all_checks(self, group: asyncio.TaskGroup) -> None:
        # Not in `run_checks`, which would keep the last one alive for as long as it runs.
        for service in self._all():
            self._start_checks(service, group)

    def _start_checks(self, service: Service, group: asyncio.TaskGroup) -> None:
        self._checks[service] = group.create_task(service.health_checker.run())

    def ticking(self, now: float) -> Iterator[None]:
        """Four times a second: do what is due, for one service after the other."""
        for service in self._all():
            yield from service.ticking(now)
        for entry in tuple(self._entries.values()):
            yield from entry.upstreams.ticking(now)
            yield
        for one in tuple(self.leaving):
            if one.is_gone(now):
                yield from self._going(one)
                yield

    def _going(self, one: LeavingService) -> Iterator[None]:
        service = one.service
        if (check := self._checks.pop(service, None)) is not None:
            check.cancel()
        yield from one.closing()
        # At once: whoever asks meanwhile for what it has counted is told.
        self.leaving.remove(one)
        self._sharing.remove(service.overload)
        name = service.config.name
        self._departed[name] = merge((self._departed.get(name, {}), one.series()))
        self._logs.close(service)

    def named(self, name: str) -> Iterator[Service]:
        """The service of that name, and those that had it and are leaving."""
        if name in self.by_name:
            yield self.by_name[name]
        yield from (one.service for one in self.leaving if one.service.config.name == name)

    def _all(self) -> Sequence[Service]:
        return (*self.by_name.values(), *(one.service for one in self.leaving))

    # -- its end

    def draining(self) -> Iterator[None]:
        """Accept no more connections, close idle ones, let the rest finish; a part in each step."""
        for service in tuple(self.by_name.values()):
            yield from service.draining()

    def cut_within(self, finish_s: Mapping[str, float]) -> None:
        """Cut what services still have after so many seconds, by name."""
        for name, seconds in finish_s.items():
            if name in self.by_name:
                self._shared.cuts.cut_service(self.by_name[name], seconds)
            for one in self.leaving:
                if one.service.config.name == name:
                    one.cut_within(seconds)

    @property
    def is_empty(self) -> bool:
        """It has drained, and no client is left in this process."""
        return all(
            one.has_drained and not one.counters.active + one.counters.in_flight
            for one in self._all()
        )

    def close_logs(self) -> None:
        """Write what waits, and close all logs."""
        for service in self._all():
            if (log := service.error_log.access_log) is not None:
                log.close()

    def reopening_logs(self) -> Iterator[None]:
        """Open all log files anew, one in each step."""
        for service in self._all():
            if (log := service.error_log.access_log) is not None:
                log.reopen()
            yield

    def giving_back(self, proxy: int) -> Iterator[None]:
        """That proxy is back: leave its listeners to it, those of one service in each step."""
        for service in tuple(self.by_name.values()):
            service.listeners.give_back(proxy)
            yield

    # -- statistics

    def departed(self) -> list[tuple[str, Series]]:
        """What services have counted that are leaving or gone, by name.

        A service that is gone is told once more, or for as long as another one has its name: the
        sum for that name must not go down.
        """
        leaving = [(one.service.config.name, one.series()) for one in self.leaving]
        gone = list(self._departed.items())
        present = {*self.by_name, *(name for name, _ in leaving)}
        for name in [name for name in self._departed if name not in present]:
            del self._departed[name]
        return leaving + gone


def _settings(config: ServiceConfig) -> ServiceConfig:
    """What `Service.configure` acts on."""
    return config.model_copy(update={"targets": (), "listeners": ()})


def _checking_addresses(targets: Sequence[Target]) -> Iterator[None]:
    """OSError: one of them is not an address. Names have been resolved by the supervisor."""
    for target in targets:
        if target.address:
            socket_address(parse_address(target.address))
        yield


def _refuse_other_kind(before: ServiceConfig, after: ServiceConfig) -> None:
    for key in ("scheme", "mode"):
        if getattr(before, key) != getattr(after, key):
            raise CannotChangeError(f"{before.name}: {key} cannot change while it runs")
