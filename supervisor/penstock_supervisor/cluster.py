"""A cluster inside a Python program: start, events, messages, stop.

Owns the task of the run, and the promise of `async with`: inside the block everything serves,
and after it nothing is left. Everything else is the supervisor's. Signal handlers and logging are
left to the program.
"""

import asyncio
import logging
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from penstock_supervisor.children.events import Event, Events, Subscription
from penstock_supervisor.config.environment import inherited_environment
from penstock_supervisor.config.loader import load
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import NotNowError, ReloadRefused, StartError
from penstock_supervisor.snapshot import RolloutView
from penstock_supervisor.supervisor import Supervisor

__all__ = [
    "Cluster", "Config", "Event", "NotNowError", "ReloadRefused", "RolloutView", "StartError",
    "load",
]  # fmt: skip

_log = logging.getLogger("penstock.supervisor")


class Cluster:
    """Workers behind one port, run inside an asyncio program.

        config = load(Path("penstock.toml"), {})
        async with Cluster(config) as cluster:
            async for event in cluster.events():
                if event.name == "message":
                    cluster.send(event.service, event.slot, {"thanks for": event.message})

    It can be entered once. The workers die with the thread that entered it, so use the main
    thread.
    """

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str] | None = None,
        *,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        """`environment` is for the workers; None: that of this process. The workers' output is
        written to the descriptors `stdout` and `stderr`."""
        self._config = config
        """What a reload applies."""
        self._reload_lock = asyncio.Lock()
        self._events = Events()
        self._settled = asyncio.Event()
        """Set when the run has started, or has ended before that."""
        self._supervisor = Supervisor(
            config,
            environment=inherited_environment() if environment is None else environment,
            read_config=lambda: self._config,
            on_started=lambda _: self._settled.set(),
            events=self._events,
            stdout=stdout,
            stderr=stderr,
        )
        self._run: asyncio.Task[int] | None = None

    @property
    def listening(self) -> Mapping[str, str]:
        """The addresses for clients, by service, with the actual port instead of port 0."""
        return self._supervisor.listening

    @property
    def admin(self) -> str:
        """Address of the admin port; empty if there is none."""
        return self._supervisor.admin

    def events(self) -> Subscription:
        """All events from now on, as an async iterator that ends with the cluster.

        Call it before the start to get the events of the start too. Close the `handle` of an
        event. At most 1024 events wait; after that the oldest are dropped and counted in
        `dropped`.
        """
        return self._events.subscribe()

    def send(
        self, service: str, slot: int, message: Any, handle: socket.socket | None = None
    ) -> bool:
        """Send any JSON value to a worker, and optionally a socket, which the caller keeps.

        False: the worker is not running now. KeyError: there is no such slot. ValueError,
        TypeError: the message cannot be sent. OSError (ENOBUFS): the worker is busy, and has not
        taken several MiB of earlier ones; `drain` waits for that.
        """
        return self._supervisor.send(service, slot, message, handle)

    async def drain(self, service: str, slot: int) -> None:
        """Wait until `send` has room for another message, or the worker is gone.

        KeyError: there is no such slot.
        """
        await self._supervisor.drain(service, slot)

    def replace(self, service: str, slot: int) -> None:
        """Start another worker in this slot, as the present one was started. Then that drains and
        exits. KeyError: there is no such slot. NotNowError: it is being removed, for example."""
        self._supervisor.replace(service, slot)

    async def reload(self, config: Config | None = None, *services: str) -> RolloutView:
        """Apply a configuration, and wait for the end of the roll-out, which is returned.

        Its `result` is "succeeded" if the new version serves. If nothing has changed, or with None,
        all workers are replaced, or those of `services`; otherwise only those that need it, and
        those of `services`. ReloadRefused: a change needs a restart, and nothing is changed.
        NotNowError: it starts or stops. KeyError: there is no such service.
        """
        async with self._reload_lock:
            before = self._config
            self._config = before if config is None else config
            try:
                answer = await self._supervisor.reload(services)
            except BaseException:
                self._config = before
                raise
        assert answer.rollout is not None
        while not (view := self._rollout(answer.rollout)).result:
            await self._supervisor.rollout_changed()
        return view

    def _rollout(self, number: int) -> RolloutView:
        return next(view for view in self._supervisor.rollouts() if view.number == number)

    def roll(self) -> None:
        """Begin a reload of the same configuration: all workers are replaced."""
        self._supervisor.roll()

    def stop(self) -> None:
        """Drain and stop. Called again: stop at once.

        The end of the `async with` block does the same, and waits.
        """
        self._supervisor.stop()

    async def __aenter__(self) -> Self:
        """Return when everything serves. StartError: the start failed, and nothing is left."""
        # Not a TaskGroup: it would cancel the body of the block when the run fails.
        self._run = run = asyncio.create_task(self._supervisor.run())  # noqa: TID251
        run.add_done_callback(self._on_run_end)
        try:
            await self._settled.wait()
        except asyncio.CancelledError:
            await self._stop_now()
            raise
        if run.done():
            run.result()
            raise StartError("it was stopped before it had started")
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and return when nothing is left. StartError: the run has failed."""
        assert self._run is not None
        if not self._run.done():
            self._supervisor.stop()
        try:
            await asyncio.shield(self._run)
        except asyncio.CancelledError:
            await self._stop_now()
            raise
        except StartError as run_error:
            if error is None:
                raise
            # The error of the block is raised; this one may be its cause.
            _log.error("%s", run_error)

    def _on_run_end(self, _: asyncio.Task[int]) -> None:
        self._events.close()
        self._settled.set()

    async def _stop_now(self) -> None:
        """Stop at once, after a cancellation. Nothing may be left, not even a zombie."""
        assert self._run is not None
        for _ in range(2):
            self._supervisor.stop()
        try:
            await asyncio.wait((self._run,))
        except asyncio.CancelledError:
            self._run.cancel()
            raise
        if not self._run.cancelled() and (run_error := self._run.exception()):
            _log.error("%s", run_error)
