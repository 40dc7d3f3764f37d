"""A worker's own process: contract, connections, program, drain.

    PORT=9001 python -m penstock_worker.serve mypkg.mod:app

Owns the life of the process: what it reads from its environment, when it sends READY or
FAILED, why it stops and with which exit status. Must not know HTTP (`aiohttp_server`,
`asgi_server`), nor how an application is found (`app_loader`), nor where connections come from
(`sources`, `connections`).

A start can fail in two ways. If the program or its port is wrong, the worker sends FAILED and exits
with `contract.EXIT_FAILED`: another start would fail likewise. If the program's own start
raises an error, or another process has its port, the status is 1: a database that is down may be up
at the next start, and the supervisor will have found another port.

A worker that *retires* goes on serving, for as long as it takes: other workers may be replaced
before it. Its supervisor first takes it out of the rotation, and then sends the TERM that stops it.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

from penstock_worker import inherited_state

if __name__ == "__main__":
    # Before the imports below, which take a while.
    inherited_state.prepare_child()

import uvloop

from penstock_worker import contract
from penstock_worker.channel import channel
from penstock_worker.listener import sources
from penstock_worker.listener.connections import Connections, ProtocolFactory, raise_fd_limit
from penstock_worker.listener.limits import DirectLimits, parse_limits
from penstock_worker.listener.proxy_header import ProxyHeaders
from penstock_worker.listener.sources import ListenError, Source
from penstock_worker.net import trusted_proxies
from penstock_worker.runtime import process_hooks, program_exit
from penstock_worker.runtime.departure import Departure
from penstock_worker.runtime.supervisor_link import SupervisorLink
from penstock_worker.servers import app_loader
from penstock_worker.servers.app_loader import AppLoadError, LoadError, Program
from penstock_worker.telemetry.counters import RequestCounters
from penstock_worker.telemetry.recorder import Recorder, open_access_log

_KEPT: Final = frozenset(
    {contract.PORT, contract.HOST, contract.SERVICE, contract.SLOT, contract.NODE_SLOT}
)
"""Variables that a program may want to read. The others would mislead its child processes."""
_ORPHAN_GRACE_S: Final = 2.0
"""For requests in flight to finish when the supervisor has died."""
_ORPHAN_FINISH_S: Final = 1.5
"""Then they are cut, so that nobody takes the end of the process for the end of a response."""
_EXIT_BROKEN: Final = 1
_EXIT_USAGE: Final = 2
_log: Final = logging.getLogger("penstock.worker")
_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_USAGE: Final = "usage: PORT=9001 python -m penstock_worker.serve MODULE:ATTRIBUTE\n"


class Server(Protocol):
    """One way to serve an application."""

    async def start(self) -> None:
        """Run the program's own start. Its errors are passed on."""

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """Make a protocol for one connection. `probe`: it is a health check's, and not counted."""

    def is_idle(self, protocol: asyncio.Protocol) -> bool:
        """Has it no request now, or only a part of one? False for a protocol of another kind."""

    async def farewell(self) -> None:
        """Run the program's own shutdown, and tell clients that would stay that the end comes.
        Requests are still served."""

    def begin_drain(self) -> None:
        """From now on each response ends its connection."""

    async def finish(self) -> None:
        """Return when nothing is in flight any more."""

    def cut(self) -> int:
        """End what is in flight, so that its clients see it. Returns how much that was."""

    async def clean_up(self) -> None:
        """Let the program clean up; also after a failed start. Its errors are passed on."""


class Worker:
    """The process as its supervisor sees it. Without a supervisor it reports to the terminal."""

    def __init__(
        self,
        spec: str,
        loop: AbstractEventLoop,
        environ: Mapping[str, str],
        supervisor: SupervisorLink,
        write_error: Callable[[str], object],
    ) -> None:
        self._spec = spec
        self._loop = loop
        self._environ = environ
        self._supervisor = supervisor
        self._limits = DirectLimits()
        self._write_error = write_error
        self._stopping = asyncio.Event()
        self._departure = Departure(loop, self._stopping, self._report_cut)
        self._retired = False
        self._serves = False
        """READY was sent."""
        self._postponed = ""
        """Why the worker retires as soon as it serves."""
        self._status = 0
        self._thread = threading.get_ident()
        self._proxy_headers: ProxyHeaders | None = None
        supervisor.on_disconnect = self._on_disconnect
        supervisor.on_stop = self._departure.notice
        supervisor.on_cannot_accept = partial(self.retire, status=_EXIT_BROKEN)
        if environ.get(contract.AWAIT_ACCEPT) == "1" and supervisor.is_connected:
            supervisor.connections.pause()
        supervisor.attach(self._asked_to_retire)

    async def run(self, program: Program, source: Source) -> int:
        """Serve until told to stop; returns the exit status."""
        self._limits = _limits(self._environ)
        program = await app_loader.call_factory(program)
        source = _source_for(program, source, self._environ)
        counted = self._environ.get(contract.SCHEME, "ports") != "ports"
        recorder = self._start_recorder() if counted else None
        server = _server(program, source, recorder, self._supervisor, self._limits)
        connections = self._supervisor.connections
        try:
            await server.start()
            connections.max_clients = self._limits.connections
            connections.open(
                source, self._with_proxy_headers(server.protocol), partial(self._is_idle, server)
            )
            self._supervisor.start(source, recorder)
            self._ready(source)
            await self._departure.run(server, connections)
            # Also now: a clean-up that does not end is killed.
            self._supervisor.report()
        finally:
            try:
                await server.clean_up()
            finally:
                connections.close()
                if self._proxy_headers is not None:
                    self._proxy_headers.close()
                source.close()
                self._supervisor.stop()
                if recorder is not None:
                    recorder.close()
        return self._status

    def cannot_start(self, error: ListenError | LoadError) -> int:
        """Report why the worker cannot start; returns the exit status."""
        self._write_error(getattr(error, "details", ""))
        if isinstance(error, ListenError) and error.in_use:
            self._write_error(f"penstock_worker: {error}\n")
            return _EXIT_BROKEN
        if not self._supervisor.send({"cmd": contract.FAILED, "reason": str(error)}):
            self._write_error(f"penstock_worker: {error}\n")
        return contract.EXIT_FAILED

    def program_failed(self, error: Exception) -> int:
        """Report what the program raised when it started or stopped; returns the exit status."""
        if isinstance(error, AppLoadError):
            why = str(error)
        else:
            self._write_error(app_loader.details(error))
            why = app_loader.explain(error)
        when = "stop" if self._stopping.is_set() else "start"
        self._write_error(f'penstock_worker: cannot {when} "{self._spec}": {why}\n')
        return _EXIT_BROKEN

    def retire(self, reason: str, status: int = 0) -> None:
        """Ask for a successor, serve until told to stop, and leave with this status."""
        if self._retired or self._stopping.is_set():
            return
        self._retired = True
        self._status = status
        # What led to it is in the log already.
        if not self._supervisor.send({"cmd": contract.RETIRE, "reason": reason, "traceback": ""}):
            # Nobody replaces a worker without a supervisor; who started it sees its exit status.
            self._stopping.set()

    def on_uncaught(self, reason: str) -> None:
        """An exception that nobody caught may have left the program in any state."""
        if self._environ.get(contract.ON_UNCAUGHT) != "retire":
            return
        if self._serves:
            self.retire(reason, 0 if self._supervisor.is_connected else _EXIT_BROKEN)
        else:
            # A worker that is not ready would be killed, which is not what was asked for.
            self._postponed = self._postponed or reason

    def on_program_exit(self, status: int, reason: str) -> bool:
        """The program called `sys.exit`. False: nothing is served yet, so it can leave at once."""
        if not self._serves:
            return False
        _log.error("the program called %s: leaving when what is served is finished", reason)
        self.retire(reason, status)
        return True

    def _asked_to_retire(self, reason: str) -> None:
        """The program asked for it, perhaps from another thread."""
        if threading.get_ident() == self._thread:
            self.retire(reason)
        else:
            self._loop.call_soon_threadsafe(self.retire, reason)

    def _is_idle(self, server: Server, protocol: asyncio.Protocol) -> bool:
        """May a connection with this protocol be ended for another client's?"""
        waiting = self._proxy_headers
        return server.is_idle(protocol) or (waiting is not None and protocol in waiting.open)

    def _with_proxy_headers(self, make_protocol: ProtocolFactory) -> ProtocolFactory:
        """Read a PROXY header at the start of each connection, if the environment says so."""
        try:
            accept_proxy = trusted_proxies.parse_accept_proxy(self._environ)
        except ValueError as error:
            raise LoadError(str(error)) from None
        if accept_proxy is None:
            return make_protocol
        self._proxy_headers = ProxyHeaders(self._loop, accept_proxy, self._supervisor.counters)
        return self._proxy_headers.wrap(make_protocol)

    def _start_recorder(self) -> Recorder:
        service = self._environ.get(contract.SERVICE, "")
        where = self._environ.get(contract.ACCESS_LOG)
        try:
            log = open_access_log(where, service, self._limits.log_field)
        except (OSError, ValueError) as error:
            raise LoadError(f"cannot write the access log: {error}") from None
        slot = self._environ.get(contract.SLOT, "0")
        made = Recorder(self._loop, self._supervisor.counters, log, f"{service}/{slot}")
        made.start()
        return made

    def _ready(self, source: Source) -> None:
        # Not before: until here a signal may end the process, there is nothing to finish.
        self._loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        if not self._supervisor.send({"cmd": contract.READY}):
            scheme = "udp" if source.kind == "datagram" else "http"
            where = "a link" if source.kind == "link" else sources.address(source.sock)
            self._write_error(
                f"penstock_worker: {self._spec} on {scheme}://{where} (pid {os.getpid()})\n"
            )
        self._serves = True
        if self._postponed:
            self.on_uncaught(self._postponed)

    def _interrupted(self) -> None:
        # A person who presses Ctrl-C twice wants it to end at once. That does not hold for
        # TERM: systemd and the supervisor may both send it.
        if self._stopping.is_set():
            os._exit(_EXIT_INTERRUPTED)
        self._stopping.set()

    def _report_cut(self, count: int) -> None:
        self._supervisor.counters.cut += count
        if not self._supervisor.send({"cmd": contract.CUT, "count": count}):
            self._status = _EXIT_BROKEN
            self._write_error(f"penstock_worker: {count} requests were cut\n")

    def _on_disconnect(self) -> None:
        self._departure.notice(_ORPHAN_FINISH_S, _ORPHAN_GRACE_S)
        self._stopping.set()
        self._loop.call_later(_ORPHAN_GRACE_S, os._exit, _EXIT_BROKEN)


def run(
    arguments: Sequence[str],
    environ: MutableMapping[str, str],
    write_error: Callable[[str], object],
) -> int:
    """Be a worker; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        write_error(_USAGE)
        return _EXIT_USAGE
    environment = dict(environ)
    try:
        sock = channel.inherited(environ)
    except ValueError as error:
        write_error(f"penstock_worker: {error}\n")
        return contract.EXIT_FAILED
    for name in contract.SCRUBBED:
        if name not in _KEPT:
            environ.pop(name, None)
    raise_fd_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        counters = RequestCounters()
        supervisor = SupervisorLink(loop, sock, environment, counters, Connections(loop, counters))
        worker = Worker(arguments[0], loop, environment, supervisor, write_error)
        hooks = process_hooks.installed(loop, supervisor, worker.on_uncaught, write_error)
        try:
            with hooks:
                source = sources.find_source(environment)
                with closing(source):
                    main = worker.run(app_loader.load(arguments[0]), source)
                    return program_exit.run(runner, main, worker.on_program_exit)
        except (ListenError, LoadError) as error:
            return worker.cannot_start(error)
        except KeyboardInterrupt:
            return _EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 -- the program's own; said, and an exit status
            return worker.program_failed(error)
        finally:
            supervisor.close()


def _source_for(program: Program, source: Source, environ: Mapping[str, str]) -> Source:
    """The source, if the program can serve that kind; or LoadError."""
    datagrams = program.kind == "datagram"
    if datagrams == (source.kind == "datagram"):
        return source
    if not datagrams:
        raise LoadError(
            f'"{program.spec}" serves connections, and its socket is for datagrams: '
            "an asyncio.DatagramProtocol is wanted there"
        )
    if not source.own:
        raise LoadError(
            f'"{program.spec}" serves datagrams, and what it is given are connections: '
            'set mode = "udp"'
        )
    # Only now is it known that the program wants datagrams from its port.
    source.close()
    return Source("datagram", sources.own_port(environ, "datagram"), own=True)


def _limits(environ: Mapping[str, str]) -> DirectLimits:
    try:
        return parse_limits(environ)
    except ValueError as error:
        raise LoadError(str(error)) from None


def _server(
    program: Program,
    source: Source,
    recorder: Recorder | None,
    supervisor: SupervisorLink,
    limits: DirectLimits,
) -> Server:
    # Imported when needed: a worker does not pay for servers that it does not use.
    if program.kind == "datagram":
        from penstock_worker.servers.datagram_server import DatagramServer

        accepting = supervisor.connections.accepting
        datagrams = DatagramServer(program.target, source.sock, accepting=accepting)
        supervisor.on_datagram_socket = datagrams.replace
        supervisor.intake = datagrams
        return datagrams
    if program.kind == "aiohttp":
        from penstock_worker.servers.aiohttp_server import AiohttpServer

        return AiohttpServer(program.target, recorder, limits)
    if find_spec("uvicorn") is None:
        raise LoadError(
            f'"{program.spec}" is an ASGI application, which needs uvicorn: '
            'pip install "penstock-lb[asgi]"'
        )
    from penstock_worker.servers.asgi_server import AsgiServer

    return AsgiServer(program.target, recorder, limits)


def main() -> None:
    # The program is in the working directory. `python -m` adds that by itself, but not with -P.
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        sys.stderr.write("penstock_worker: the working directory has been deleted\n")
        sys.exit(contract.EXIT_FAILED)
    if here not in sys.path:
        sys.path.insert(0, here)
    sys.exit(run(sys.argv[1:], os.environ, sys.stderr.write))  # noqa: TID251 -- the only reader


if __name__ == "__main__":
    main()
