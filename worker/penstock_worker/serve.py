"""A worker's own process: contract, connections, program, drain.

    PORT=9001 python -m penstock_worker.serve mypkg.mod:app

Owns the life of the process: what it takes from its environment, when it says READY or
FAILED, why it leaves and with which status. It knows neither HTTP nor how an application is
found nor where connections come from; those are `aiohttp_server`, `asgi_server`,
`datagram_server`, `loading`, `listeners` and `intake`.

A start that fails is of two kinds. What is wrong with the program or its port is FAILED and
`contract.EXIT_FAILED`: another start would only say it again. What the program's own start
raises is status 1, because a database that is away may be back when we are started again.

A worker that *retires* goes on serving: its supervisor first sees to it that nobody picks it
any more, and then sends the TERM that ends it.
"""

import asyncio
import os
import signal
import sys
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import uvloop

from penstock_worker import (
    bounds,
    channel,
    contract,
    intake,
    listeners,
    loading,
    peers,
    recorder,
    retiring,
)
from penstock_worker.bounds import Bounds
from penstock_worker.counters import RequestCounters
from penstock_worker.intake import Connections, ProtocolFactory
from penstock_worker.introduction import ProxyHeaders
from penstock_worker.line import Line
from penstock_worker.listeners import ListenError, Source
from penstock_worker.loading import LoadError, Program, StartError
from penstock_worker.recorder import Recorder

_READABLE: Final = frozenset(
    {contract.PORT, contract.HOST, contract.SERVICE, contract.SLOT, contract.NODE_SLOT}
)
"""Names that a program may want to read; the rest would mislead the children it starts."""
_ORPHANED_S: Final = 2.0
"""What is in flight may finish when the supervisor dies, but nothing survives it for long."""
_RETIRED_S: Final = 10.0
"""For the answer to RETIRE, a TERM. Who asked and hears nothing leaves by itself."""
_EXIT_BROKEN: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_USAGE: Final = "usage: PORT=9001 python -m penstock_worker.serve MODULE:ATTRIBUTE\n"


class Server(Protocol):
    """One way to serve an application."""

    async def start(self) -> None:
        """The program's own start. Its errors come out."""

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """A protocol for one connection, which may be a health check's."""

    def leave(self) -> None:
        """From now on each answer is the last on its connection."""

    async def finish(self) -> None:
        """Let what is in flight finish, and the program clean up; also after a failed start."""


class Worker:
    """The process, as its supervisor knows it; without one it talks to the terminal."""

    def __init__(
        self,
        spec: str,
        loop: AbstractEventLoop,
        environ: Mapping[str, str],
        line: Line,
        say: Callable[[str], object],
    ) -> None:
        self._spec = spec
        self._loop = loop
        self._environ = environ
        self._line = line
        self._bounds = Bounds()
        self._say = say
        self._leaving = asyncio.Event()
        self._retired = False
        self._status = 0
        self._thread = threading.get_ident()
        self._proxy_headers: ProxyHeaders | None = None
        line.on_lost = self._orphaned
        line.attach(self._asked_to_retire)
        retiring.watch(loop, self.retire)

    async def run(self, program: Program, source: Source) -> int:
        """Serve until told to leave; returns the exit status."""
        self._bounds = _bounds(self._environ)
        program = await loading.made(program)
        source = _suited(program, source, self._environ)
        counted = self._environ.get(contract.SCHEME, "ports") != "ports"
        notes = self._recorder() if counted else None
        server = _server(program, source, notes, self._line, self._bounds)
        connections = self._line.connections
        try:
            await server.start()
            connections.max_clients = self._bounds.connections
            connections.open(source, self._with_proxy_headers(server.protocol))
            self._line.start(source, notes)
            self._ready(source)
            await self._leaving.wait()
            server.leave()
            await connections.drain()
        finally:
            try:
                await server.finish()
            finally:
                connections.close()
                if self._proxy_headers is not None:
                    self._proxy_headers.close()
                source.sock.close()
                self._line.stop()
                if notes is not None:
                    notes.close()
        return self._status

    def failed(self, error: ListenError | LoadError) -> int:
        """Say why there will be no worker; returns the exit status."""
        self._say(getattr(error, "details", ""))
        if not self._line.send({"cmd": contract.FAILED, "reason": str(error)}):
            self._say(f"penstock_worker: {error}\n")
        return contract.EXIT_FAILED

    def broken(self, error: Exception) -> int:
        """Say what the program raised, at its start or end; returns the exit status."""
        if isinstance(error, StartError):
            why = str(error)
        else:
            self._say(loading.details(error))
            why = loading.explained(error)
        when = "stop" if self._leaving.is_set() else "start"
        self._say(f'penstock_worker: cannot {when} "{self._spec}": {why}\n')
        return _EXIT_BROKEN

    def retire(self, reason: str, traceback: str = "") -> None:
        """Ask for a successor, and serve until told to leave. Once; then it is only said."""
        if not self._retired and not self._leaving.is_set():
            self._retired = True
            said = {"cmd": contract.RETIRE, "reason": reason, "traceback": traceback}
            if self._line.send(said):
                self._loop.call_later(_RETIRED_S, self._leaving.set)
                return
            # Nobody replaces a lone worker; whoever started it sees that it has left.
            self._leaving.set()
            self._status = _EXIT_BROKEN if traceback else 0
        self._say(traceback)

    def _asked_to_retire(self, reason: str) -> None:
        """By the program, from whatever thread."""
        if threading.get_ident() == self._thread:
            self.retire(reason)
        else:
            self._loop.call_soon_threadsafe(self.retire, reason)

    def _with_proxy_headers(self, serve: ProtocolFactory) -> ProtocolFactory:
        """Connections begin with a PROXY header, if we were told so."""
        try:
            terms = peers.told(self._environ)
        except ValueError as error:
            raise LoadError(str(error)) from None
        if terms is None:
            return serve
        self._proxy_headers = ProxyHeaders(self._loop, terms, self._line.counters)
        return self._proxy_headers.wrap(serve)

    def _recorder(self) -> Recorder:
        service = self._environ.get(contract.SERVICE, "")
        where = self._environ.get(contract.ACCESS_LOG)
        try:
            log = recorder.opened(where, service, self._bounds.log_field)
        except (OSError, ValueError) as error:
            raise LoadError(f"cannot write the access log: {error}") from None
        slot = self._environ.get(contract.SLOT, "0")
        made = Recorder(self._loop, self._line.counters, log, f"{service}/{slot}")
        made.start()
        return made

    def _ready(self, source: Source) -> None:
        # Only now: until here a signal may simply end us, there is nothing to finish.
        self._loop.add_signal_handler(signal.SIGTERM, self._leaving.set)
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        if not self._line.send({"cmd": contract.READY}):
            scheme = "udp" if source.kind == "datagram" else "http"
            where = "a link" if source.kind == "link" else listeners.address(source.sock)
            self._say(f"penstock_worker: {self._spec} on {scheme}://{where} (pid {os.getpid()})\n")

    def _interrupted(self) -> None:
        # A person who presses Ctrl-C again means it. TERM is not counted like that: systemd
        # and the supervisor may both send it.
        if self._leaving.is_set():
            os._exit(_EXIT_INTERRUPTED)
        self._leaving.set()

    def _orphaned(self) -> None:
        self._leaving.set()
        self._loop.call_later(_ORPHANED_S, os._exit, _EXIT_BROKEN)


def run(
    arguments: Sequence[str], environ: MutableMapping[str, str], say: Callable[[str], object]
) -> int:
    """Be a worker; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        say(_USAGE)
        return _EXIT_USAGE
    told = dict(environ)
    try:
        upward = channel.inherited(environ)
    except ValueError as error:
        say(f"penstock_worker: {error}\n")
        return contract.EXIT_FAILED
    for name in contract.SCRUBBED:
        if name not in _READABLE:
            environ.pop(name, None)
    intake.raise_fd_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        counters = RequestCounters()
        line = Line(loop, upward, told, counters, Connections(loop, counters))
        worker = Worker(arguments[0], loop, told, line, say)
        try:
            source = listeners.found(told)
            with source.sock:
                return runner.run(worker.run(loading.load(arguments[0]), source))
        except (ListenError, LoadError) as error:
            return worker.failed(error)
        except KeyboardInterrupt:
            return _EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 -- the program's own; said, and an exit status
            return worker.broken(error)
        finally:
            line.close()


def _suited(program: Program, source: Source, environ: Mapping[str, str]) -> Source:
    """The source, if it is of the kind that the program serves; or LoadError."""
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
    # Only now it is known what the program wants of the port.
    source.sock.close()
    return Source("datagram", listeners.own_port(environ, "datagram"), own=True)


def _bounds(environ: Mapping[str, str]) -> Bounds:
    try:
        return bounds.told(environ)
    except ValueError as error:
        raise LoadError(str(error)) from None


def _server(
    program: Program, source: Source, notes: Recorder | None, line: Line, bounded: Bounds
) -> Server:
    # None is imported before it is needed: a worker of one kind does not pay for all.
    if program.kind == "datagram":
        from penstock_worker.datagram_server import DatagramServer

        datagrams = DatagramServer(program.target, source.sock)
        line.on_datagrams = datagrams.replace
        return datagrams
    if program.kind == "aiohttp":
        from penstock_worker.aiohttp_server import AiohttpServer

        return AiohttpServer(program.target, notes, bounded)
    if find_spec("uvicorn") is None:
        raise LoadError(
            f'"{program.spec}" is an ASGI application, which needs uvicorn: '
            'pip install "penstock[asgi]"'
        )
    from penstock_worker.asgi_server import AsgiServer

    return AsgiServer(program.target, notes, bounded)


def main() -> None:
    # `python -m` does so itself, but not with -P, and the program is in the directory that
    # we are started in.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    sys.exit(run(sys.argv[1:], os.environ, sys.stderr.write))  # noqa: TID251 -- the only reader


if __name__ == "__main__":
    main()
