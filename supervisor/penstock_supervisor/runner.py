"""A whole run: opens, starts, watches, stops. Executes what the tables and plans say.

Owns the order of things (sockets before children, front before workers when leaving) and
the facts that span children: has it started, is it over, who is in the rotation. What one
child does is `child`; what it is started with is `schemes`.

A run fails as a whole only before a service ever worked: then a person stands before it and
wants to know. Afterwards nothing but a stop ends it: a worker that cannot be kept alive is
reported and left alone, while the others serve. Only without a front nobody could serve.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final

from penstock_proxy.orders import ACCEPT, CONFIGURE, JOIN, LEAVE, REOPEN, ROTATION, STATS
from penstock_supervisor import admin as pages
from penstock_supervisor import processes, schemes, upstreams
from penstock_supervisor.census import Census, Lag
from penstock_supervisor.child import Child, Surroundings
from penstock_supervisor.errors import StartError
from penstock_supervisor.lifecycle import State
from penstock_supervisor.observation import Observation
from penstock_supervisor.output import Output
from penstock_supervisor.processes import Guardian
from penstock_supervisor.services import Config
from penstock_supervisor.sockets import Listener, choose_addresses
from penstock_worker.channel import Message

if TYPE_CHECKING:
    from penstock_proxy.config import Address

__all__ = ["FRONT", "Runner", "StartError"]

FRONT: Final = (sys.executable, "-P", "-m", "penstock_proxy.front")
"""-P: the directory we happen to stand in must not shadow what the front imports."""
_HASTE_S: Final = 5.0
"""Time to leave when the start failed: nobody is being served, and somebody is waiting."""

_log = logging.getLogger(__name__)


class Runner:
    """One `penstock run`. Made once, run once.

    From the call of `on_started` on, `listening` and `workers` (addresses by service) and
    `admin` ("" if there is none) are where things really are: the configuration may have
    said port 0, or nothing.
    """

    def __init__(
        self,
        config: Config,
        *,
        environment: Mapping[str, str],
        on_started: Callable[["Runner"], None] = lambda _: None,
        front: Sequence[str] = FRONT,
        python: str = sys.executable,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        """`stdout` and `stderr` are descriptors that the children's lines are written to."""
        self.config = config
        self.listening: dict[str, str] = {}
        self.workers: dict[str, tuple[str, ...]] = {}
        self.admin = ""
        self._environment = environment
        self._on_started = on_started
        self._front_argv = front
        self._python = python
        self._descriptors = (stdout, stderr)
        self._listeners: dict[str, Listener] = {}
        self._places: dict[str, list[Address]] = {}
        self._upstreams: dict[str, list[Address]] = {}
        self._front: Child | None = None
        self._children: dict[tuple[str, int], Child] = {}
        self._rotation: dict[tuple[str, int], str] = {}
        self._census = Census()
        self._lag: Lag | None = None
        self._begun_at = 0.0
        self._changed = asyncio.Event()
        self._failure: StartError | None = None
        self._started = False
        self._stopping = False
        self._halting = False

    # What may be asked of a run from outside.

    async def run(self) -> int:
        """Everything until told to stop; return the exit status. StartError: it cannot be.

        Whatever way this is left, nothing of it is left running.
        """
        loop = asyncio.get_running_loop()
        self._begun_at = loop.time()
        async with AsyncExitStack() as stack:
            admin = self._open(stack)
            guardian = stack.enter_context(closing(Guardian(loop)))
            stdout, stderr = self._descriptors
            output = stack.enter_context(closing(Output(loop, stdout=stdout, stderr=stderr)))
            self._lag = stack.enter_context(closing(Lag()))
            async with asyncio.TaskGroup() as tasks:
                if admin is not None:
                    await stack.enter_async_context(pages.serve(admin.socket, self.observe))
                self._plan(Surroundings(loop, tasks, guardian, output, self))
                await self._live()
        if self._failure is not None:
            raise self._failure
        return 0

    def stop(self) -> None:
        """Drain and leave; called again, leave at once."""
        if not self._stopping:
            longest = max(service.timeouts.stop for service in self.config.services)
            _log.info("stopping: finishing what is served, at most %g s; again: at once", longest)
            self._stopping = True
        elif not self._halting:
            _log.warning("stopping at once")
            self._halting = True
            for child in self._everybody():
                child.halt()
        self._changed.set()

    def reopen_logs(self) -> None:
        """Have the front open its log files anew, after they were moved away."""
        if self._front is not None:
            self._front.send({"cmd": REOPEN})

    async def observe(self, deadline_s: float) -> Observation:
        """Describe the run now; children have `deadline_s` to tell what only they know."""
        views = await self._census.take(tuple(self._everybody()), deadline_s)
        return Observation(
            children=views,
            services={
                service.name: self._described(service.name) for service in self.config.services
            },
            uptime_s=asyncio.get_running_loop().time() - self._begun_at,
            ready=self._is_ready(),
            stopping=self._stopping,
            listener_fds=sum(one.fileno() >= 0 for one in self._listeners.values()),
            channel_fds=sum(child.has_channel for child in self._everybody()),
            loop_lag_s=0.0 if self._lag is None else self._lag.seconds,
        )

    # The way of a run.

    def _open(self, stack: AsyncExitStack) -> Listener | None:
        """Open every socket and choose every port, before anything is started."""
        for service in self.config.services:
            listener = Listener(service.listen, f"service.{service.name}.listen", later=True)
            stack.callback(listener.close)
            self._listeners[service.name] = listener
            self.listening[service.name] = str(listener.address)
        admin = None
        if self.config.admin:
            admin = self._listeners[""] = Listener(self.config.admin, "admin")
            stack.callback(admin.close)
            self.admin = str(admin.address)
        self._upstreams = upstreams.resolve(self.config.services)
        self._places = choose_addresses(self.config.services, self._listeners.values())
        for service in self.config.services:
            named = tuple(upstream.address for upstream in service.upstreams)
            self.workers[service.name] = named or tuple(map(str, self._places[service.name]))
        return admin

    def _plan(self, surroundings: Surroundings) -> None:
        listeners = [self._listeners[service.name].fileno() for service in self.config.services]
        plan = schemes.front_plan(self.config, listeners, self._environment, self._front_argv)
        self._front = Child(plan, surroundings)
        for service in self.config.services:
            places = self._places[service.name]
            for plan in schemes.worker_plans(service, places, self._environment, self._python):
                self._children[plan.service, plan.slot] = Child(plan, surroundings)

    async def _live(self) -> None:
        with self._nobody_left():
            for child in self._everybody():
                child.start()
            await self._until(lambda: self._is_over() or self._has_started())
            if not self._is_over():
                self._let_in()
            await self._until(self._is_over)
            await self._leave()

    def _let_in(self) -> None:
        """Everything works: an open port means that somebody answers."""
        try:
            for service in self.config.services:
                self._listeners[service.name].listen()
        except StartError as error:
            self._failure = error
            return
        self._started = True
        assert self._front is not None
        self._front.send({"cmd": ACCEPT})
        _log.info("started")
        self._on_started(self)

    async def _leave(self) -> None:
        """The front finishes first: what it still serves needs its workers."""
        for service in self.config.services:
            self._listeners[service.name].close()
        haste = None if self._failure is None else _HASTE_S
        front = self._front
        assert front is not None
        front.stop(haste)
        if not self._failure:
            await self._until(lambda: front.at_rest)
        for child in self._children.values():
            child.stop(haste)
        await self._until(lambda: all(child.at_rest for child in self._everybody()))

    @contextmanager
    def _nobody_left(self) -> Iterator[None]:
        """After a mistake of our own the children must not have to wait for the guardian."""
        try:
            yield
        except BaseException:
            for child in self._everybody():
                child.halt()
            raise

    async def _until(self, condition: Callable[[], bool]) -> None:
        # Everything that a condition can depend on sets `_changed`. There is one waiter.
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _everybody(self) -> Iterator[Child]:
        if self._front is not None:
            yield self._front
        yield from self._children.values()

    def _is_over(self) -> bool:
        return self._stopping or self._failure is not None

    def _has_started(self) -> bool:
        """Every service worked, and every slot had its chance."""
        everybody = tuple(self._everybody())
        return all(child.was_up or child.state is State.GIVEN_UP for child in everybody) and all(
            self._ever_worked(child) for child in everybody
        )

    def _ever_worked(self, child: Child) -> bool:
        """The child's service did, by this child or a sister."""
        return any(
            one.was_up for one in self._everybody() if one.plan.service == child.plan.service
        )

    def _is_ready(self) -> bool:
        if self._front is None or self._front.state is not State.UP or self._is_over():
            return False
        serving = {service for (service, _), state in self._rotation.items() if state == "up"}
        return all(service.name in serving for service in self.config.services)

    def _described(self, name: str) -> dict[str, object]:
        service = next(one for one in self.config.services if one.name == name)
        kind = "upstreams" if service.upstreams else "workers"
        return {
            "scheme": service.scheme,
            "mode": service.mode,
            "listen": self.listening.get(name, service.listen),
            kind: self.workers.get(name, ()),
        }

    # `Above`: what children report.

    def spawned(self, child: Child) -> None:
        child.stats = {}
        if child is not self._front:
            return
        config = schemes.front_config(
            self.config,
            {
                service.name: (self._listeners[service.name].fileno(),)
                for service in self.config.services
            },
            {**self._places, **self._upstreams},
            joined=lambda service, slot: self._children[service, slot].state is State.UP,
            # What the last front knew: the next one serves at once and checks meanwhile.
            up=lambda service, slot: self._rotation.get((service, slot)) == "up",
        )
        child.send({"cmd": CONFIGURE, "config": config.model_dump(mode="json")})
        if self._started:
            child.send({"cmd": ACCEPT})

    def joined(self, child: Child) -> None:
        if child is not self._front:
            self._order(JOIN, child)

    def left(self, child: Child) -> None:
        if child is not self._front:
            self._rotation.pop((child.plan.service, child.plan.slot), None)
            self._order(LEAVE, child)

    def heard(self, child: Child, message: Message) -> None:
        if message["cmd"] == STATS:
            self._census.answered(child, message)
        elif message["cmd"] == ROTATION and child is self._front:
            self._turned(message)
        else:
            _log.warning("%s says %r, which is not understood", child.name, message["cmd"])

    def hopeless(self, child: Child, why: str) -> bool:
        return not self._ever_worked(child) and self._fail(why)

    def gave_up(self, child: Child, why: str) -> bool:
        if child is self._front:
            return self._fail(f"{why}; without a front nobody can be served")
        if self._ever_worked(child):
            return False
        # One that ignores PORT gets away with it once; its sisters find the port taken.
        misled = filter(None, (one.misled() for one in self._children.values()))
        return self._fail("; ".join((why, *misled)))

    def moved(self, child: Child) -> None:
        self._census.moved(child)
        if os.getpid() == 1 and child.pid is None:
            processes.reap_strangers({one.pid for one in self._everybody() if one.pid})
        self._changed.set()

    def _order(self, what: str, child: Child) -> None:
        assert self._front is not None
        self._front.send({"cmd": what, "service": child.plan.service, "slot": child.plan.slot})

    def _turned(self, message: Message) -> None:
        """A worker entered or left the rotation, says the front."""
        service, slot, state = message.get("service"), message.get("slot"), message.get("state")
        if not (isinstance(service, str) and isinstance(slot, int) and isinstance(state, str)):
            return
        child = self._children.get((service, slot))
        if child is not None and child.state is not State.UP:
            # On its way before the front heard that the process is gone.
            return
        self._rotation[service, slot] = state
        reason = message.get("reason")
        _log.info("%s/%d is %s%s", service, slot, state, f": {reason}" if reason else "")
        self._changed.set()

    def _fail(self, why: str) -> bool:
        if not self._is_over():
            self._failure = StartError(why)
            self._changed.set()
        return self._failure is not None
