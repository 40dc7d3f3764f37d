"""A cluster as a part of somebody's Python program: started, listened to, talked to, stopped.

Owns the task that the run is, and what an `async with` promises of it: inside of it everything
serves, after it nothing of it is left. Everything else is the supervisor's. It sets up no signals
and no logging: both are the program's.
"""

import asyncio
import logging
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from penstock_supervisor.children.events import Event, Events, Subscription
from penstock_supervisor.config.loader import inherited_environment, load
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import StartError
from penstock_supervisor.supervisor import Supervisor

__all__ = ["Cluster", "Config", "Event", "StartError", "load"]

_log = logging.getLogger("penstock.supervisor")


class Cluster:
    """Workers behind one port, run from within an asyncio program.

        config = load(Path("penstock.toml"), {})
        async with Cluster(config) as cluster:
            async for event in cluster.events():
                if event.name == "message":
                    cluster.send(event.service, event.slot, {"thanks for": event.message})

    Made once and entered once. The workers die with the thread that entered it, so that is
    best the main one.
    """

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str] | None = None,
        *,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        """`environment`: what workers inherit; None: this process' own. `stdout` and `stderr`
        are descriptors that the workers' lines are written to."""
        self._events = Events()
        self._settled = asyncio.Event()
        """It has started, or never will."""
        self._supervisor = Supervisor(
            config,
            environment=inherited_environment() if environment is None else environment,
            on_started=lambda _: self._settled.set(),
            events=self._events,
            stdout=stdout,
            stderr=stderr,
        )
        self._run: asyncio.Task[int] | None = None

    @property
    def listening(self) -> Mapping[str, str]:
        """Where clients connect, by service; the real port where the configuration says 0."""
        return self._supervisor.listening

    @property
    def admin(self) -> str:
        """Address of the admin port; empty if there is none."""
        return self._supervisor.admin

    def events(self) -> Subscription:
        """What happens from now on, as an async iterator that ends when the cluster is over.

        Call it before the start to see that too. Whoever takes an event closes its `handle`.
        At most 1024 events wait; after that the oldest are dropped and counted in `dropped`.
        """
        return self._events.subscribe()

    def send(
        self, service: str, slot: int, message: Any, handle: socket.socket | None = None
    ) -> bool:
        """Send any JSON value to a worker, with a socket if you like, which stays yours.

        False: nobody is there to take it just now. KeyError: there is no such slot.
        ValueError, TypeError: it cannot be sent, and why.
        """
        return self._supervisor.send(service, slot, message, handle)

    def replace(self, service: str, slot: int) -> None:
        """Start another worker in this slot; the present one takes no more, finishes what it
        serves, and leaves. KeyError: there is no such slot."""
        self._supervisor.replace(service, slot)

    def roll(self) -> None:
        """Replace all workers, one after the other."""
        self._supervisor.roll()

    def stop(self) -> None:
        """Begin to leave: finish what is served. Called again: leave at once.

        The end of the `async with` does the same, and waits for it.
        """
        self._supervisor.stop()

    async def __aenter__(self) -> Self:
        """Return when everything serves. StartError: it never will, and nothing is left."""
        # A group would end whoever is inside when the run fails, and not only tell him.
        self._run = run = asyncio.create_task(self._supervisor.run())  # noqa: TID251
        run.add_done_callback(self._over)
        try:
            await self._settled.wait()
        except asyncio.CancelledError:
            await self._end_at_once()
            raise
        if run.done():
            run.result()
            raise StartError("it was stopped before it had started")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and return when nothing is left. StartError: the run had failed before."""
        assert self._run is not None
        if not self._run.done():
            self._supervisor.stop()
        try:
            await asyncio.shield(self._run)
        except asyncio.CancelledError:
            await self._end_at_once()
            raise
        except StartError as failure:
            if error is None:
                raise
            # What went wrong inside is told; this is only why, or beside it.
            _log.error("%s", failure)

    def _over(self, _: asyncio.Task[int]) -> None:
        self._events.close()
        self._settled.set()

    async def _end_at_once(self) -> None:
        """Nobody waits any longer; still, nothing may be left, not even a zombie."""
        assert self._run is not None
        for _ in range(2):
            self._supervisor.stop()
        try:
            await asyncio.wait((self._run,))
        except asyncio.CancelledError:
            self._run.cancel()
            raise
        if not self._run.cancelled() and (failure := self._run.exception()):
            _log.error("%s", failure)
