"""One process of a slot: started, talked to, and let go of as one.

Owns the process and all that was opened for it: its pipes, channel and links, and the task that
finds out whether it is ready. Whatever goes wrong while it is started leaves no descriptor
behind: channel and links are made, their far ends go to numbers that nothing else wants, the
process is started, and our copies of the far ends are closed.

It does not know why the process is started, what its messages mean, or what follows from its
end: its slot does (`child`), and is told by `ProcessCallbacks`.
"""

import os
import socket
from asyncio import AbstractEventLoop, Task, TaskGroup
from collections.abc import Callable
from contextlib import ExitStack
from signal import Signals
from typing import Any, Final, NamedTuple

from penstock_supervisor.children import readiness
from penstock_supervisor.children.output import Capture, Output
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.process.privileges import AS_WE_ARE
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import ExecSpec, dup_high
from penstock_supervisor.process.spawn import Exit, Process, SpawnError
from penstock_worker import contract
from penstock_worker.channel import channel
from penstock_worker.channel.channel import MAX_HANDLES, Channel

_MOST_LINK_ENDS: Final = 1 << 13


class ProcessCallbacks(NamedTuple):
    """What a slot is told of its process; from the loop, never from within `spawn`."""

    on_exit: Callable[[Exit], None]
    """It is gone, and was reaped."""
    on_message: Callable[[Any, socket.socket | None], None]
    """Whoever gets the handle closes it."""
    on_disconnect: Callable[[str], None]
    """Its channel has ended; why, if we closed it."""
    on_ready: Callable[[], None]
    """A program that cannot say so itself is ready."""


class Running:
    """Made by `spawn`, and closed when the process is gone."""

    def __init__(
        self,
        plan: ChildPlan,
        process: Process,
        captures: tuple[Capture, ...],
        end: socket.socket,
        links: tuple[HandoffLink, ...],
        inodes: tuple[int, ...],
        callbacks: ProcessCallbacks,
        *,
        loop: AbstractEventLoop,
        tasks: TaskGroup,
    ) -> None:
        """Owns all that it is given; `end` is ours of the channel."""
        self.links = links
        """To each proxy by its slot."""
        self.inodes = inodes
        """Of the listening sockets that it was given. Not descriptors: the run may close
        those, and something else gets their numbers."""
        self.speaks = False
        """It has said something of ours, and can be asked."""
        self.spawned_at = loop.time()
        self.ready_at: float | None = None
        self._process = process
        self._captures = captures
        self._callbacks = callbacks
        # A proxy that starts is sent all links at once, and is our own program.
        most = _MOST_LINK_ENDS if plan.role == "proxy" else MAX_HANDLES
        self._channel = Channel(loop, end, self._on_message, self._on_disconnect, max_handles=most)
        self._waiting: Task[None] | None = None
        if not plan.ours:
            self._waiting = tasks.create_task(self._wait_until_ready(plan))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_channel(self) -> bool:
        return not self._channel.closed

    def signal(self, number: Signals) -> None:
        """To the process and all that it started."""
        self._process.signal(number)

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """As `Channel.send`."""
        return self._channel.send(message, handle, on_sent)

    def take_links(self) -> tuple[HandoffLink, ...]:
        """Whoever calls this closes them."""
        links, self.links = self.links, ()
        return links

    def hear_out(self) -> None:
        """Take what it said last: pipes and channel may hold what nobody has read yet."""
        for capture in self._captures:
            capture.drain()
        self._channel.read_pending()

    def close(self) -> None:
        """Let go of all that was opened for it. Its pipes end by themselves: what it started
        may still write to them."""
        for link in self.take_links():
            link.close()
        self._channel.close()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _wait_until_ready(self, plan: ChildPlan) -> None:
        if plan.address is not None:
            await readiness.until_it_answers(plan.address)
        elif self.inodes:
            await readiness.until_it_takes(self.pid, self.inodes[0])
        self._callbacks.on_ready()

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        self.speaks |= isinstance(command, str) and command.startswith(contract.INTERNAL)
        self._callbacks.on_message(message, handle)

    def _on_disconnect(self) -> None:
        self._callbacks.on_disconnect(self._channel.fault)


Spawn = Callable[[ChildPlan, tuple[int, ...], ProcessCallbacks], Running]
"""`spawn`, with what all processes of a run have in common."""


def spawn(
    plan: ChildPlan,
    sockets: tuple[int, ...],
    callbacks: ProcessCallbacks,
    *,
    loop: AbstractEventLoop,
    tasks: TaskGroup,
    guardian: Guardian,
    output: Output,
) -> Running:
    """Start a process with `sockets` as its listening sockets. SpawnError if that cannot be."""
    inodes = tuple(os.fstat(fd).st_ino for fd in sockets)
    with ExitStack() as ours, ExitStack() as theirs:
        try:
            end, links, given = _ends(plan, ours, theirs)
        except OSError as error:
            why = f"no channel and no links can be made for it: {error.strerror}"
            raise SpawnError("workers", why, temporary=True) from None
        process = Process(_program(plan, sockets, given), loop, guardian, callbacks.on_exit)
        ours.pop_all()
    captures = output.capture(plan.name, process.stdout, process.stderr)
    return Running(plan, process, captures, end, links, inodes, callbacks, loop=loop, tasks=tasks)


def _ends(
    plan: ChildPlan, ours: ExitStack, theirs: ExitStack
) -> tuple[socket.socket, tuple[HandoffLink, ...], list[int]]:
    """Our end of its channel, its links, and the numbers of what it inherits of both."""
    mine, far = channel.pair()
    ours.callback(mine.close)
    with far:
        given = [dup_high(far.fileno())]
    theirs.callback(os.close, given[0])
    links: list[HandoffLink] = []
    for _ in range(plan.links):
        links.append(HandoffLink.pair())
        ours.callback(links[-1].close)
        given.append(dup_high(links[-1].worker.fileno()))
        theirs.callback(os.close, given[-1])
    return mine, tuple(links), given


def _program(plan: ChildPlan, sockets: tuple[int, ...], given: list[int]) -> ExecSpec:
    """`given` are the far ends of the channel and, after it, of the links."""
    environment = {**plan.environment, contract.CHANNEL_FD: str(given[0])}
    if plan.links:
        environment[contract.LINK_FD] = ",".join(map(str, given[1:]))
    return ExecSpec(
        plan.argv,
        environment,
        plan.directory,
        (*plan.inherited, *given),
        captured=plan.role != "proxy",
        listen=sockets,
        names=plan.service,
        privileges=plan.privileges or AS_WE_ARE,
    )
