"""A worker's own process: contract, listener, program, drain.

    PORT=9001 python -m penstock_worker.serve mypkg.mod:app

Owns the life of the process: what it takes from its environment, when it says READY or
FAILED, why it leaves and with which status. It knows neither HTTP nor how an application is
found; those are `aiohttp_server`, `asgi_server` and `loading`.

A start that fails is of two kinds. What is wrong with the program or its port is FAILED and
`contract.EXIT_FAILED`: another start would only say it again. What the program's own start
raises is status 1, because a database that is away may be back when we are started again.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import uvloop

from penstock_worker import channel, contract, listeners, loading
from penstock_worker.channel import Channel, Message
from penstock_worker.lag import LagMeter
from penstock_worker.listeners import ListenError
from penstock_worker.loading import LoadError, Program, StartError

_READABLE: Final = frozenset(
    {contract.PORT, contract.HOST, contract.SERVICE, contract.SLOT, contract.NODE_SLOT}
)
"""Names that a program may want to read; the rest would mislead the children it starts."""
_ORPHANED_S: Final = 2.0
"""What is in flight may finish when the supervisor dies, but nothing survives it for long."""
_EXIT_BROKEN: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_USAGE: Final = "usage: PORT=9001 python -m penstock_worker.serve MODULE:ATTRIBUTE\n"


class Server(Protocol):
    """One way to serve an application."""

    async def run(
        self, sock: socket.socket, on_ready: Callable[[], None], leaving: asyncio.Event
    ) -> None:
        """Start, serve until `leaving`, finish. Errors of the program's start come out."""

    def clients(self) -> int:
        """Connections that are open now."""


class Worker:
    """The process, as its supervisor knows it; without one it talks to the terminal."""

    def __init__(
        self,
        spec: str,
        loop: AbstractEventLoop,
        link: socket.socket | None,
        say: Callable[[str], object],
    ) -> None:
        self._spec = spec
        self._loop = loop
        self._say = say
        self._channel = Channel(loop, link, self._told, self._orphaned) if link else None
        self._lag = LagMeter(loop)
        self._leaving = asyncio.Event()
        self._server: Server | None = None
        self._listening = False

    def load(self) -> Program:
        return loading.load(self._spec)

    async def run(self, program: Program, sock: socket.socket) -> None:
        """Serve until told to leave."""
        self._server = _server(await loading.made(program))
        self._lag.start()
        try:
            await self._server.run(sock, lambda: self._ready(sock), self._leaving)
        finally:
            self._lag.stop()

    def failed(self, error: ListenError | LoadError) -> int:
        """Say why there will be no worker; returns the exit status."""
        self._say(getattr(error, "details", ""))
        if self._channel is None:
            self._say(f"penstock_worker: {error}\n")
        else:
            self._channel.send({"cmd": contract.FAILED, "reason": str(error)})
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

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _ready(self, sock: socket.socket) -> None:
        # Only now: until here a signal may simply end us, there is nothing to finish.
        self._loop.add_signal_handler(signal.SIGTERM, self._leaving.set)
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        self._listening = True
        if self._channel is None:
            where = listeners.address(sock)
            self._say(f"penstock_worker: {self._spec} on http://{where} (pid {os.getpid()})\n")
        else:
            self._channel.send({"cmd": contract.READY})

    def _interrupted(self) -> None:
        # A person who presses Ctrl-C again means it. TERM is not counted like that: systemd
        # and the supervisor may both send it.
        if self._leaving.is_set():
            os._exit(_EXIT_INTERRUPTED)
        self._leaving.set()

    def _orphaned(self) -> None:
        self._leaving.set()
        self._loop.call_later(_ORPHANED_S, os._exit, _EXIT_BROKEN)

    def _told(self, message: Message) -> None:
        # A supervisor that is newer than we are may ask for more than we know.
        if message["cmd"] == contract.STATS and self._channel is not None:
            metrics = {"fds": self._descriptors(), "loop_lag_s": self._lag.worst_s()}
            self._channel.send(
                {"cmd": contract.STATS, "seq": message.get("seq"), "metrics": metrics}
            )

    def _descriptors(self) -> dict[str, int]:
        known = {
            "listener": int(self._listening and not self._leaving.is_set()),
            "client": 0 if self._server is None else self._server.clients(),
            "channel": 1,
        }
        try:
            # Less the one that lists them.
            found = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
        except OSError:
            return known
        return {**known, "other": max(0, found - sum(known.values()))}


def run(
    arguments: Sequence[str], environ: MutableMapping[str, str], say: Callable[[str], object]
) -> int:
    """Be a worker; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        say(_USAGE)
        return _EXIT_USAGE
    try:
        link = channel.inherited(environ)
    except ValueError as error:
        say(f"penstock_worker: {error}\n")
        return contract.EXIT_FAILED
    for name in contract.SCRUBBED:
        if name not in _READABLE:
            environ.pop(name, None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = Worker(arguments[0], runner.get_loop(), link, say)
        try:
            sock = listeners.own_port(environ)
            with sock:
                runner.run(worker.run(worker.load(), sock))
        except (ListenError, LoadError) as error:
            return worker.failed(error)
        except KeyboardInterrupt:
            return _EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 -- the program's own; said, and an exit status
            return worker.broken(error)
        finally:
            worker.close()
    return 0


def _server(program: Program) -> Server:
    # Neither is imported before it is needed: a worker of one kind does not pay for both.
    if program.kind == "aiohttp":
        from penstock_worker.aiohttp_server import AiohttpServer

        return AiohttpServer(program.target)
    if find_spec("uvicorn") is None:
        raise LoadError(
            f'"{program.spec}" is an ASGI application, which needs uvicorn: '
            'pip install "penstock[asgi]"'
        )
    from penstock_worker.asgi_server import AsgiServer

    return AsgiServer(program.target)


def main() -> None:
    # `python -m` does so itself, but not with -P, and the program is in the directory that
    # we are started in.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    sys.exit(run(sys.argv[1:], os.environ, sys.stderr.write))  # noqa: TID251 -- the only reader


if __name__ == "__main__":
    main()
