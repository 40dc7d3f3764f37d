"""A worker's line to its supervisor: what it is told, and what it says of itself.

Owns the channel of a process that runs our runtime: it carries out our own messages (STATS,
PING, PROBE, LISTEN, REOPEN) and hands the program's to `process`. Must not know when the
worker starts and leaves, which is `serve`'s; it only passes on that the supervisor is gone.

A supervisor that is newer than we are may say more than we know: that is ignored.
"""

import logging
import os
import socket
from asyncio import AbstractEventLoop, all_tasks
from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock_worker import contract, process
from penstock_worker.channel import Channel
from penstock_worker.counters import (
    RequestCounters,
    Series,
    connection_series,
    request_series,
)
from penstock_worker.intake import Connections
from penstock_worker.lag import LagMeter
from penstock_worker.listeners import Source
from penstock_worker.recorder import Recorder

_log: Final = logging.getLogger("penstock.worker")


class Line:
    """Without a supervisor (`upward` is None) it is silent, and everything works."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        upward: socket.socket | None,
        environ: Mapping[str, str],
        counters: RequestCounters,
        connections: Connections,
    ) -> None:
        self.counters = counters
        self.connections = connections
        self.on_lost: Callable[[], None] = lambda: None
        self.on_datagrams: Callable[[socket.socket], None] = socket.socket.close
        """Gets a new socket for datagrams."""
        self._scheme = environ.get(contract.SCHEME, "ports")
        self._slot = environ.get(contract.SLOT, "")
        self._lag = LagMeter(loop)
        self._datagrams = 0
        self._notes: Recorder | None = None
        self._serves = False
        self._channel = Channel(loop, upward, self._told, self._lost) if upward else None
        self.send({"cmd": contract.ONLINE, "pid": os.getpid()})

    def send(self, message: dict[str, Any]) -> bool:
        """False: there is nobody to hear it."""
        return self._channel is not None and self._channel.send(message)

    def attach(self, on_retire: Callable[[str], None]) -> None:
        """Let the program talk through this line."""
        process.attach(self._channel, on_retire)

    def start(self, source: Source, notes: Recorder | None) -> None:
        """The worker serves now."""
        self._datagrams = int(source.kind == "datagram")
        self._notes = notes
        self._serves = True
        self._lag.start()

    def stop(self) -> None:
        """The worker has served. What it counted since it was last asked is still to be said."""
        self._lag.stop()
        if self._serves and self._scheme != "ports":
            self._tell_figures(None)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _lost(self) -> None:
        process.disconnected()
        self.on_lost()

    def _told(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        if not isinstance(command, str) or not command.startswith(contract.INTERNAL):
            process.deliver(message, handle)
            return
        if handle is not None:
            self._given(command, handle)
        elif command == contract.STATS:
            self._tell_figures(message.get("seq"))
        elif command == contract.PING:
            self.send({"cmd": contract.PONG, "seq": message.get("seq")})
        elif command == contract.REOPEN and self._notes is not None:
            self._notes.reopen()
        else:
            _log.debug("a message that this worker does not know: %.80r", command)

    def _tell_figures(self, number: object) -> None:
        self.send({"cmd": contract.STATS, "seq": number, "metrics": self._metrics()})

    def _given(self, command: str, handle: socket.socket) -> None:
        if command == contract.PROBE:
            self.connections.probe(handle)
        elif command == contract.LISTEN and handle.type == socket.SOCK_DGRAM:
            self.on_datagrams(handle)
        elif command == contract.LISTEN:
            self.connections.listen(handle)
        else:
            _log.debug("a descriptor with a message that has none: %.80r", command)
            handle.close()

    def _metrics(self) -> dict[str, Any]:
        return {
            "fds": self._descriptors(),
            "loop_lag_s": self._lag.worst_s(),
            "tasks": len(all_tasks()),
            "series": self._series(),
        }

    def _series(self) -> Series:
        if self._scheme == "ports":
            return {}
        series = request_series(self.counters, self._slot)
        if self._scheme != "handoff":
            series.update(connection_series(self.counters, self._slot))
        return series

    def _descriptors(self) -> dict[str, int]:
        known = {
            "listener": self.connections.listeners + self._datagrams,
            "client": self.connections.clients,
            "channel": 1 + self.connections.links,
        }
        try:
            # Less the one that lists them.
            found = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
        except OSError:
            return known
        return {**known, "other": max(0, found - sum(known.values()))}
