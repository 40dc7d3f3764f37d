"""The process that a child has at the moment, if it has one: what it is asked and told.

Owns that one place, so that every question has an answer without a process, too. Must not know the
state of the child, nor when its process is started and what follows from its end (`child`).
"""

import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

from penstock_supervisor.children import stacks
from penstock_supervisor.children.running import Running
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_worker.channel.channel import Channel


class PresentProcess:
    """`running` is None while there is no process."""

    running: Running | None = None

    @property
    def pid(self) -> int | None:
        return None if self.running is None else self.running.pid

    @property
    def has_channel(self) -> bool:
        return self.running is not None and self.running.has_channel

    @property
    def channel(self) -> Channel | None:
        return None if self.running is None else self.running.channel

    @property
    def place(self) -> str:
        """Where it stood when it wrote its stacks, to be added to a line; empty: not known."""
        if self.running is None or not self.running.has_shown_stacks:
            return ""
        place = stacks.place(self.running.last_output.text())
        return f"; it was at {place}" if place else ""

    @property
    def speaks_protocol(self) -> bool:
        """Its process has sent a message of our protocol, so it answers requests."""
        return self.running is not None and self.running.speaks_protocol

    @property
    def links(self) -> tuple[HandoffLink, ...]:
        """By the slot of the proxy."""
        return () if self.running is None else self.running.links

    def take_links(self) -> tuple[HandoffLink, ...]:
        """Take over its links; the caller closes them."""
        return () if self.running is None else self.running.take_links()

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """As `Channel.send`; False as well if it has no process."""
        return self.running is not None and self.running.send(message, handle, on_sent)

    def send_each(self, messages: Iterable[Any]) -> bool:
        """As `Channel.send_each`; False as well if it has no process."""
        return self.running is not None and self.running.send_each(messages)

    def signal(self, number: signal.Signals) -> bool:
        """As `Running.signal`; False: no process. Its exit is handled like any other."""
        if self.running is None:
            return False
        if number is signal.SIGKILL:
            self.running.kill("somebody asked for it")
        else:
            self.running.signal(number)
        return True

    def kill(self, why: str) -> None:
        """As `Running.kill`, if it has a process."""
        if self.running is not None:
            self.running.kill(why)

    def dump_stacks(self) -> bool:
        """As `Running.dump_stacks`; False as well if it has no process."""
        return self.running is not None and self.running.dump_stacks()
