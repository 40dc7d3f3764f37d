"""A worker's link to its supervisor: messages that it receives, and what it reports.

Owns the channel of a process that runs our runtime. It carries out our own messages (STATS, PING,
PROBE, LISTEN, ACCEPT, PAUSE, MAKE_ROOM, REOPEN, STOP), and hands the program's to `process`. Must
not know when the worker starts and stops, which is `serve`'s; it only reports that the supervisor
is gone.

A supervisor that is newer than this worker may send messages unknown here: they are ignored.
"""

import logging
import os
import socket
from asyncio import AbstractEventLoop, all_tasks
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from penstock_worker import contract, process
from penstock_worker.channel.channel import Channel
from penstock_worker.listener.connections import Connections
from penstock_worker.listener.sources import ListenError, Source
from penstock_worker.telemetry.counters import (
    RequestCounters,
    Series,
    connection_series,
    request_series,
    uncaught_series,
)
from penstock_worker.telemetry.loop_lag import LoopLag
from penstock_worker.telemetry.recorder import Recorder

_log: Final = logging.getLogger("penstock.worker")


class Intake(Protocol):
    """What takes new clients, or their datagrams."""

    def accept(self) -> None:
        """At last, or again. ListenError: it cannot."""

    def pause(self) -> None:
        """Take nothing new until `accept`."""

    def descriptors(self) -> Iterable[int]:
        """Of its sockets."""


class SupervisorLink:
    """Without a supervisor (`sock` is None) nothing is sent, and everything works."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket | None,
        environ: Mapping[str, str],
        counters: RequestCounters,
        connections: Connections,
    ) -> None:
        self.counters = counters
        self.connections = connections
        self.on_disconnect: Callable[[], None] = lambda: None
        self.on_stop: Callable[[float, float], None] = lambda finish_s, within_s: None
        """Is called with the times of a STOP, in seconds."""
        self.intake: Intake = connections
        """What ACCEPT and PAUSE are for."""
        self.on_cannot_accept: Callable[[str], None] = lambda why: None
        """Is called if ACCEPT came in vain."""
        self.on_datagram_socket: Callable[[socket.socket], None] = socket.socket.close
        """Is called with a socket for datagrams that replaces the first one."""
        self._scheme = environ.get(contract.SCHEME, "ports")
        self._slot = environ.get(contract.SLOT, "")
        self._lag = LoopLag(loop)
        self._has_datagrams = False
        """It reads from a socket for datagrams."""
        self._recorder: Recorder | None = None
        self._started = False
        self._commands: dict[str, Callable[[dict[str, Any]], object]] = {
            contract.STATS: lambda message: self._send_stats(message.get("seq")),
            contract.PING: lambda message: self.send(
                {"cmd": contract.PONG, "seq": message.get("seq")}
            ),
            contract.ACCEPT: self._accept,
            contract.PAUSE: lambda _: self.intake.pause(),
            contract.MAKE_ROOM: lambda message: connections.make_room(message.get("count")),
            contract.STOP: lambda message: self.on_stop(
                float(message["finish"]), float(message["within"])
            ),
            contract.REOPEN: self._reopen,
        }
        """Our own messages without a descriptor."""
        self._channel = Channel(loop, sock, self._on_message, self._on_disconnect) if sock else None
        self.send({"cmd": contract.ONLINE, "pid": os.getpid()})

    @property
    def is_connected(self) -> bool:
        """There is a supervisor."""
        return self._channel is not None and not self._channel.closed

    def send(self, message: dict[str, Any]) -> bool:
        """Send one of our own messages; False: there is no supervisor."""
        return self._channel is not None and self._channel.send(message)

    def attach(self, on_retire: Callable[[str], None]) -> None:
        """Let the program send and receive over this channel."""
        process.attach(self._channel, on_retire)

    def uncaught(self, reason: str) -> None:
        """An exception that nobody caught was logged."""
        # Not past what waits already: the log has it, and the supervisor does not read.
        if self._channel is not None and not self._channel.congested:
            self.send({"cmd": contract.UNCAUGHT, "reason": reason})

    def descriptors(self) -> Iterator[int]:
        """All that no child of this process must have."""
        if self._channel is not None:
            yield self._channel.fileno()
        yield from self.connections.descriptors()
        if self.intake is not self.connections:
            yield from self.intake.descriptors()

    def start(self, source: Source, recorder: Recorder | None) -> None:
        """The worker serves from now on."""
        self._has_datagrams = source.kind == "datagram"
        self._recorder = recorder
        self._started = True
        self._lag.start()

    def stop(self) -> None:
        """The worker has served. Send what it counted since it was last asked."""
        self._lag.stop()
        self.report()

    def report(self) -> None:
        """Nothing is served any more. Send what was counted since it was last asked."""
        if self._started:
            self._send_stats(None)

    def close(self) -> None:
        """The process exits. What was sent arrives, if the supervisor reads."""
        if self._channel is not None:
            process.flush(self._channel)
            self._channel.close()

    def _on_disconnect(self) -> None:
        process.disconnected()
        self.on_disconnect()

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        if not isinstance(command, str) or not command.startswith(contract.INTERNAL):
            process.deliver(message, handle)
            return
        if handle is not None:
            self._on_handle(command, handle)
        elif (carry_out := self._commands.get(command)) is not None:
            carry_out(message)
        else:
            _log.debug("a message that this worker does not know: %.80r", command)

    def _accept(self, _: dict[str, Any]) -> None:
        try:
            self.intake.accept()
        except ListenError as error:
            self.on_cannot_accept(str(error))

    def _reopen(self, _: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.reopen()

    def _send_stats(self, seq: object) -> None:
        self.send({"cmd": contract.STATS, "seq": seq, "metrics": self._metrics()})

    def _on_handle(self, command: str, handle: socket.socket) -> None:
        if command == contract.PROBE:
            self.connections.probe(handle)
        elif command == contract.LISTEN and handle.type == socket.SOCK_DGRAM:
            self._has_datagrams = True
            self.on_datagram_socket(handle)
        elif command == contract.LISTEN:
            self.connections.listen(handle)
        else:
            _log.debug("a descriptor with a message that has none: %.80r", command)
            handle.close()

    def _metrics(self) -> dict[str, Any]:
        return {
            "fds": self._descriptors(),
            "loop_lag": self._lag.histogram.flat(),
            "tasks": len(all_tasks()),
            "series": self._series(),
        }

    def _series(self) -> Series:
        series = uncaught_series(self.counters, self._slot)
        if self._scheme != "ports":
            series.update(request_series(self.counters, self._slot))
        if self._scheme in ("shared", "reuseport"):
            series.update(connection_series(self.counters, self._slot))
        return series

    def _descriptors(self) -> dict[str, int]:
        known = {
            "listener": self.connections.listeners + self._has_datagrams,
            "client": self.connections.clients,
            "channel": 1 + self.connections.links,
        }
        try:
            # Without the one that lists them.
            open_fds = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
        except OSError:
            return known
        return {**known, "other": max(0, open_fds - sum(known.values()))}
