"""One process of a slot, with everything that was opened for it.

Owns the process, its pipes, its channel, its links, and the task that waits until it is ready.
A start has these steps: make channel and links, copy the child's ends to high descriptor
numbers, start the process, close our copies of the child's ends. If a step fails, all
descriptors are closed.

It does not know why the process is started, what its messages mean, or what follows from its
end. The slot (`child`) knows, and gets `ProcessCallbacks`.
"""

import os
import socket
from asyncio import AbstractEventLoop, Task, TaskGroup
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from signal import Signals
from typing import Any, Final, NamedTuple

from penstock_supervisor.children import readiness
from penstock_supervisor.children.last_output import LastOutput
from penstock_supervisor.children.output import Capture, Output
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.kernel.process_state import catches, is_stopped
from penstock_supervisor.process.child_signals import HARMLESS
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.process.privileges import UNCHANGED
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import ExecSpec, dup_high
from penstock_supervisor.process.spawn import Exit, Process, SpawnError
from penstock_worker import contract
from penstock_worker.channel import channel
from penstock_worker.channel.channel import MAX_HANDLES, Channel

_MAX_PROXY_HANDLES: Final = 1 << 13


class ProcessCallbacks(NamedTuple):
    """What the slot gets from its process. The loop calls them, never `spawn` itself."""

    on_exit: Callable[[Exit], None]
    """The process has ended and was reaped."""
    on_message: Callable[[Any, socket.socket | None], None]
    """A message and its handle, which the callback has to close."""
    on_disconnect: Callable[[str], None]
    """The channel is closed. The text is the reason if we closed it, else empty."""
    on_ready: Callable[[], None]
    """A program that cannot report readiness itself is ready."""
    on_group_end: Callable[[], None] = lambda: None
    """What the process had started has ended, too. Only if it lived longer."""


class Running:
    """Made by `spawn`, and closed when the process is gone."""

    def __init__(
        self,
        plan: ChildPlan,
        process: Process,
        captures: tuple[Capture, ...],
        last_output: LastOutput,
        channel_end: socket.socket,
        links: tuple[HandoffLink, ...],
        inodes: tuple[int, ...],
        callbacks: ProcessCallbacks,
        *,
        loop: AbstractEventLoop,
        tasks: TaskGroup,
    ) -> None:
        """Takes over all arguments; `channel_end` is our end of the channel."""
        self.links = links
        """By the slot of the proxy."""
        self.inodes = inodes
        """Of its inherited listening sockets. Descriptors would not do: the run may close them,
        and their numbers are used again."""
        self._is_disconnected = False
        """The end of its channel was reported, which happens once."""
        self.speaks_protocol = False
        """It has sent a message of our protocol, so it answers requests."""
        self.killed_because = ""
        """Why it was killed from here; empty: it was not."""
        self.retires = False
        """It has asked to be replaced. Once is enough."""
        self.has_shown_stacks = False
        """It was asked to write its stacks."""
        self.spawned_at = loop.time()
        self.ready_at: float | None = None
        self._process = process
        self._stop_s = plan.stop_s
        self._runs_our_code = plan.runs_our_code
        self._captures = captures
        self.last_output = last_output
        """What its pipes brought last, also when it has ended."""
        self._callbacks = callbacks
        # A proxy gets all links at once when it starts. As our own program it is trusted with it.
        max_handles = _MAX_PROXY_HANDLES if plan.role == "proxy" else MAX_HANDLES
        self.channel = Channel(
            loop, channel_end, self._on_message, self._on_disconnect, max_handles=max_handles
        )
        self._readiness_task: Task[None] | None = None
        if not plan.runs_our_code:
            self._readiness_task = tasks.create_task(self._wait_until_ready(plan))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_channel(self) -> bool:
        return not self.channel.closed

    @property
    def has_remaining_group(self) -> bool:
        """It has ended, and something that it had started has not."""
        return self._process.has_remaining_group

    def use_settings(self, plan: ChildPlan) -> None:
        """From now on it is stopped as this plan says."""
        self._stop_s = plan.stop_s
        self._process.use_settings(Signals[plan.stop_signal], plan.stop_to, plan.stop_s)

    def stop(self, within_s: float) -> None:
        """As TERM, but it and what it started have so long."""
        self._process.stop(within_s)

    def signal(self, number: Signals) -> None:
        """TERM asks it to end: it is replaced by the signal of its plan, goes to whom the plan
        says, and what the process started has the same time. Others go to the process group."""
        if number is Signals.SIGTERM:
            self.stop(self._stop_s)
        else:
            self._process.signal(number)

    def kill(self, why: str) -> None:
        """Kill its process group. `why` is said of its end, after "as"."""
        self.killed_because = self.killed_because or why
        self._process.signal(Signals.SIGKILL)

    def dump_stacks(self) -> bool:
        """Have a worker that runs our runtime write its stacks to stderr. False: it cannot yet."""
        number = contract.DUMP_STACKS_SIGNAL
        if not self._runs_our_code or is_stopped(self.pid) or not catches(self.pid, number):
            return False
        self.has_shown_stacks = True
        # To itself alone: what it has started has no handler, and would end.
        self._process.signal_leader(number)
        return True

    def shorten_group(self, within_s: float) -> None:
        """What is left of its group, now or when it has ended, has no longer than this."""
        self._process.shorten_group(within_s)

    def kill_group(self) -> None:
        """Kill what is left of its group."""
        self._process.kill_group()

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """As `Channel.send`."""
        return self.channel.send(message, handle, on_sent)

    def send_each(self, messages: Iterable[Any]) -> bool:
        """As `Channel.send_each`."""
        return self.channel.send_each(messages)

    def take_links(self) -> tuple[HandoffLink, ...]:
        """Take over the links; the caller closes them."""
        links, self.links = self.links, ()
        return links

    def read_pending(self) -> None:
        """Read what an ended process left in its pipes and its channel. Its channel has ended then:
        that is reported now, because what follows is its exit."""
        for capture in self._captures:
            capture.drain()
        self.channel.read_pending()
        # Also if something that it started still has the other end. The end of the channel itself
        # is reported only in the loop's next turn, and by then it is closed here.
        self._on_disconnect()

    def close(self) -> None:
        """Close links and channel, and stop waiting for readiness. The pipes stay open until they
        end: processes that it started may still write to them."""
        for link in self.take_links():
            link.close()
        self.channel.close()
        if self._readiness_task is not None:
            self._readiness_task.cancel()

    async def _wait_until_ready(self, plan: ChildPlan) -> None:
        if plan.reached_at is not None:
            await readiness.until_it_accepts(plan.reached_at, self.pid)
        elif self.inodes:
            await readiness.until_it_waits_for_socket(self.pid, self.inodes[0])
        self._callbacks.on_ready()

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        self.speaks_protocol |= isinstance(command, str) and command.startswith(contract.INTERNAL)
        self._callbacks.on_message(message, handle)

    def _on_disconnect(self) -> None:
        if self._is_disconnected:
            return
        self._is_disconnected = True
        self._callbacks.on_disconnect(self.channel.fault)


class LeftBehind:
    """What earlier processes of a slot started and left. False: nothing is left."""

    def __init__(self) -> None:
        self._ended: list[Running] = []

    def __bool__(self) -> bool:
        self._ended = [one for one in self._ended if one.has_remaining_group]
        return bool(self._ended)

    def close(self, running: Running) -> None:
        """Close a process that has ended, and remember what it left."""
        running.close()
        if running.has_remaining_group:
            self._ended.append(running)

    def shorten(self, within_s: float, present: Running | None = None) -> None:
        """Nothing goes on for longer than this; nor what the present process will leave."""
        for running in self._ended if present is None else (*self._ended, present):
            running.shorten_group(within_s)

    def kill(self) -> None:
        for running in self._ended:
            running.kill_group()


Spawn = Callable[[ChildPlan, tuple[int, ...], ProcessCallbacks], Running]
"""`spawn`, with the arguments that all processes of a run share."""


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
    """Start a process that inherits `sockets` as its listening sockets. Raises SpawnError."""
    inodes = tuple(os.fstat(fd).st_ino for fd in sockets)
    with ExitStack() as our_ends, ExitStack() as child_ends:
        try:
            channel_end, links, child_fds = _open_channel_and_links(plan, our_ends, child_ends)
        except OSError as error:
            why = f"no channel and no links can be made for it: {error.strerror}"
            raise SpawnError("workers", why, temporary=True) from None
        process = Process(
            _exec_spec(plan, sockets, child_fds),
            loop,
            guardian,
            callbacks.on_exit,
            callbacks.on_group_end,
        )
        our_ends.pop_all()
    # A worker blocks in a write as it would without a supervisor; a proxy must not.
    last = LastOutput()
    captures = output.capture(
        plan.name, process.stdout, process.stderr, can_wait=plan.role != "proxy", last=last
    )
    return Running(
        plan, process, captures, last, channel_end, links, inodes, callbacks,
        loop=loop, tasks=tasks,
    )  # fmt: skip


def _open_channel_and_links(
    plan: ChildPlan, our_ends: ExitStack, child_ends: ExitStack
) -> tuple[socket.socket, tuple[HandoffLink, ...], list[int]]:
    """Our end of the channel, the links, and the descriptors of both that the child inherits."""
    our_end, child_end = channel.pair()
    our_ends.callback(our_end.close)
    with child_end:
        child_fds = [dup_high(child_end.fileno())]
    child_ends.callback(os.close, child_fds[0])
    links: list[HandoffLink] = []
    for _ in range(plan.link_count):
        links.append(HandoffLink.pair())
        our_ends.callback(links[-1].close)
        child_fds.append(dup_high(links[-1].worker.fileno()))
        child_ends.callback(os.close, child_fds[-1])
    return our_end, tuple(links), child_fds


def _exec_spec(plan: ChildPlan, sockets: tuple[int, ...], child_fds: list[int]) -> ExecSpec:
    """`child_fds` are the child's ends: first the channel, then the links."""
    environment = {**plan.environment, contract.CHANNEL_FD: str(child_fds[0])}
    if plan.link_count:
        environment[contract.LINK_FD] = ",".join(map(str, child_fds[1:]))
    if plan.awaits_accept:
        environment[contract.AWAIT_ACCEPT] = "1"
    return ExecSpec(
        plan.argv,
        environment,
        plan.directory,
        (*plan.inherited_fds, *child_fds),
        captured=plan.role != "proxy",
        listen=sockets,
        fd_name=plan.service,
        privileges=plan.privileges or UNCHANGED,
        blocked_signals=HARMLESS if plan.runs_our_code else frozenset(),
        name=plan.name,
        stop_signal=Signals[plan.stop_signal],
        stop_to=plan.stop_to,
        stop_s=plan.stop_s,
    )
