"""All services of a process: made at its start, changed, added and removed while it runs.

Owns: the services by name, what they share, the tasks of their health checks, and those that are
leaving. A changed configuration is carried out in two steps. First all that can fail is done and
nothing is changed; then nothing can fail. Must not know: messages, and when the process ends.

A service's connections are never closed because its configuration has changed, except where the
client would have to speak otherwise: what was accepted without TLS, or for workers that expect
another PROXY header, is closed between two requests.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock_proxy.balancing.outlier_detection import Recent
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import ProxyConfig, ServiceConfig
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

if TYPE_CHECKING:
    from penstock_proxy.listener.overload import Overload

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
        self._overloads: list[Overload] = []
        self._scheduling = Scheduling()
        self._group: asyncio.TaskGroup | None = None
        """While `run_checks` runs."""
        self._checks: dict[Service, asyncio.Task[None]] = {}
        self._departed: dict[str, Series] = {}
        """What services had counted that are gone, by name."""

    # -- the configuration

    def configure(self, config: ProxyConfig) -> None:
        """Make the services, for the first time. OSError: a log cannot be opened."""
        for one in config.services:
            self._add(one, self._logs.open(one))
        self._connect()

    def reconfigure(self, config: ProxyConfig, finish_s: Mapping[str, float]) -> None:
        """Bring all services to this configuration. New ones get their listeners later.

        `finish_s`: by the name of a service that is removed, the seconds after which the rest is
        cut; by default its own `timeouts.stop`. OSError, CannotChangeError: nothing was changed.
        """
        wanted = {one.name: one for one in config.services}
        for name, one in wanted.items():
            if name in self.by_name:
                _refuse_other_kind(self.by_name[name].config, one)
            _check_addresses(one)
        logs = self._open_logs(wanted)
        for name in self.by_name.keys() - wanted.keys():
            service = self.by_name[name]
            self._remove(name, finish_s.get(name, service.timeouts.stop))
        for name, one in wanted.items():
            if name not in self.by_name:
                self._add(one.model_copy(update={"listeners": ()}), logs[name])
            else:
                self._change(self._entries[name], one, logs.get(name))
        self._connect()

    def _open_logs(self, wanted: Mapping[str, ServiceConfig]) -> dict[str, OpenedLog]:
        """The logs of new services, and of those whose log is another one from now on."""
        opened: dict[str, OpenedLog] = {}
        try:
            for name, config in wanted.items():
                present = self.by_name.get(name)
                if present is None or not is_same_log(present.wanted, config):
                    opened[name] = self._logs.open(config)
            self._shared.fd_budget.check()
        except OSError:
            for one in opened.values():
                self._logs.discard(one)
            raise
        return opened

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
        )
        service.overload.spare = shared.spare
        service.overload.on_crowded = partial(shared.reports.crowded, name)
        service.overload.sharing = self._overloads
        self._overloads.append(service.overload)
        self.by_name[name] = service
        self._entries[name] = _Entry(service, Upstreams(service, shared.cuts))
        if self.accepting:
            service.start()
        if self._group is not None:
            self._start_checks(service, self._group)

    def _change(self, entry: _Entry, config: ServiceConfig, opened: OpenedLog | None) -> None:
        service = entry.service
        before = service.wanted
        if _settings(before) != _settings(config):
            service.configure(config)
        entry.upstreams.update(config.targets, self._shared.timers.now)
        service.configure_checks(config.targets)
        if opened is not None:
            self._logs.exchange(service, opened, before)

    def _remove(self, name: str, finish_s: float) -> None:
        del self._entries[name]
        service, shared = self.by_name.pop(name), self._shared
        self.leaving.append(
            LeavingService(service, shared.cuts, shared.timers.now, finish_s, LAST_CLOSE_S)
        )

    def _connect(self) -> None:
        """Some services have come, gone or changed: what depends on all of them."""
        chains = {name: service.filter_chain for name, service in self.by_name.items()}
        for service in self.by_name.values():
            service.filter_chain.set_sni_routes(chains)
        if self.by_name:
            self._scheduling.let_workers_finish(
                all(one.config.scheme == "handoff" for one in self.by_name.values())
            )

    # -- while the process runs

    def start(self) -> None:
        """The listeners listen: accept from now on."""
        self.accepting = True
        for service in self.by_name.values():
            service.start()

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
            entry.upstreams.tick(now)
            yield
        for one in tuple(self.leaving):
            if one.is_gone(now):
                self._gone(one)
                yield

    def _gone(self, one: LeavingService) -> None:
        service = one.service
        self.leaving.remove(one)
        self._overloads.remove(service.overload)
        if (check := self._checks.pop(service, None)) is not None:
            check.cancel()
        name = service.config.name
        self._departed[name] = merge((self._departed.get(name, {}), one.close()))
        self._logs.close(service)

    def named(self, name: str) -> Iterator[Service]:
        """The service of that name, and those that had it and are leaving."""
        if name in self.by_name:
            yield self.by_name[name]
        yield from (one.service for one in self.leaving if one.service.config.name == name)

    def _all(self) -> Sequence[Service]:
        return (*self.by_name.values(), *(one.service for one in self.leaving))

    # -- its end

    def drain(self) -> None:
        """Accept no more connections, close idle ones, let the rest finish."""
        self._shared.reactor.slices.run(map(Service.drain, tuple(self.by_name.values())))

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
        """No client is left in this process."""
        return not any(one.counters.active + one.counters.in_flight for one in self._all())

    def close_logs(self) -> None:
        """Write what waits, and close all logs."""
        for service in self._all():
            if (log := service.error_log.access_log) is not None:
                log.close()

    def reopen_logs(self) -> None:
        """Open all log files anew."""
        for service in self._all():
            if (log := service.error_log.access_log) is not None:
                log.reopen()

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


def _check_addresses(config: ServiceConfig) -> None:
    """OSError: one of them is not an address. Names have been resolved by the supervisor."""
    for target in config.targets:
        if target.address:
            socket_address(parse_address(target.address))


def _refuse_other_kind(before: ServiceConfig, after: ServiceConfig) -> None:
    for key in ("scheme", "mode"):
        if getattr(before, key) != getattr(after, key):
            raise CannotChangeError(f"{before.name}: {key} cannot change while it runs")
