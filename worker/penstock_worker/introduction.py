"""Connections that begin with a PROXY header, in a worker that reads it itself.

Owns: a connection from the moment it is adopted until its header has come; then the program's
protocol gets it, with the bytes behind the header and a transport that knows whose it is
really. Under `shared` and `reuseport` nobody stands before us, under `handoff` the front passes
connections untouched, and under `ports` it may say so for itself (`send_proxy`). Must not
know what protocol that is.

The program's protocol is made when the header is there: until then there is nothing in its
server that it could count, time out, or find idle.
"""

import asyncio
import logging
from asyncio import AbstractEventLoop, Transport
from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock_worker.counters import RequestCounters
from penstock_worker.peers import Terms, Trusted, peer_address
from penstock_worker.proxy_protocol import Header, HeaderError, Place, parse

_LINES: Final = 10
"""Lines in the log, and then a pause: strangers must not fill a disk."""
_PAUSE_S: Final = 10.0
_PASSED_ON: Final = (
    "abort", "can_write_eof", "close", "get_protocol", "get_write_buffer_limits",
    "get_write_buffer_size", "is_closing", "is_reading", "pause_reading", "resume_reading",
    "set_protocol", "set_write_buffer_limits", "write", "write_eof", "writelines",
)  # fmt: skip
HEADER: Final = "proxy_header"
UNTRUSTED: Final = "proxy_untrusted"
"""Why a connection is closed: values of a metric's label, and the same as a front's."""

_log: Final = logging.getLogger("penstock.worker")

Serve = Callable[[bool], asyncio.Protocol]


class Introductions:
    """All connections of one worker whose header has not come."""

    def __init__(self, loop: AbstractEventLoop, terms: Terms, counters: RequestCounters) -> None:
        self.loop = loop
        self.seconds = terms.seconds
        self.trusted = Trusted(terms.trusted)
        self.open: set[_Introduction] = set()
        self._counters = counters
        # Known to whom it may happen, so that a rate has something to begin from.
        counters.rejected.update({HEADER: 0, UNTRUSTED: 0})
        self._lines = 0
        self._since = -_PAUSE_S

    def before(self, serve: Serve) -> Serve:
        """Read a header before `serve` makes a protocol; a health check of ours has none."""
        return lambda probe: serve(True) if probe else _Introduction(self, serve)

    def close(self) -> None:
        """Nobody is served any more."""
        for one in tuple(self.open):
            one.transport.abort()

    def turned_away(self, address: str, kind: str, reason: str) -> None:
        self._counters.rejected[kind] += 1
        now = self.loop.time()
        if now - self._since >= _PAUSE_S:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines < _LINES:
            _log.warning("closed a connection from %s: %s", address or "a unix socket", reason)
        elif self._lines == _LINES:
            _log.warning("more connections are closed; the metrics count them all")


class _Introduction(asyncio.Protocol):
    """One connection without a header."""

    __slots__ = ("_address", "_all", "_got", "_serve", "_timer", "transport")

    transport: Transport

    def __init__(self, all_: Introductions, serve: Serve) -> None:
        self._all = all_
        self._serve = serve
        self._got = b""
        self._address = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._all.open.add(self)
        self._address = peer_address(transport.get_extra_info("peername"))
        if self._address in self._all.trusted:
            self._timer = self._all.loop.call_later(self._all.seconds, self._late)
        else:
            self._turn_away(UNTRUSTED, "it is none of trusted_proxies")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._got += data
        try:
            found = parse(self._got)
        except HeaderError as error:
            self._turn_away(HEADER, str(error))
            return
        if isinstance(found, Header):
            self._introduce(found)

    def eof_received(self) -> bool:
        if self._got:
            self._turn_away(HEADER, "its PROXY header broke off")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def _introduce(self, header: Header) -> None:
        self._leave()
        transport, rest = self.transport, self._got[header.size :]
        if isinstance(header.source, tuple):
            transport = _Introduced(transport, header.source, header.destination)
        protocol = self._serve(False)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if rest and not transport.is_closing():
            protocol.data_received(rest)

    def _late(self) -> None:
        self._turn_away(HEADER, "its PROXY header took too long")

    def _turn_away(self, kind: str, reason: str) -> None:
        self._leave()
        self._all.turned_away(self._address, kind, reason)
        self.transport.abort()

    def _leave(self) -> None:
        self._all.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()


class _Introduced(Transport):
    """A transport that says who is at the far end of the proxy. All else is the real one's,
    and bound to it: what is written goes straight there."""

    def __init__(self, transport: Transport, source: Place, destination: Place) -> None:
        super().__init__()
        self._transport = transport
        self._names = {"peername": _name(source)}
        if isinstance(destination, tuple):
            self._names["sockname"] = _name(destination)
        for name in _PASSED_ON:
            setattr(self, name, getattr(transport, name))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in self._names:
            return self._names[name]
        found = self._transport.get_extra_info(name, default)
        # uvicorn asks the socket, and not the transport, for both names.
        return _Socket(found, self._names) if name == "socket" and found is not None else found


class _Socket:
    """The same of its socket."""

    def __init__(self, sock: Any, names: Mapping[str, Any]) -> None:
        self._sock = sock
        self._names = names

    def getpeername(self) -> Any:
        return self._names["peername"]

    def getsockname(self) -> Any:
        return self._names["sockname"] if "sockname" in self._names else self._sock.getsockname()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _name(place: Place) -> Any:
    """As the socket itself would say it: IPv6 has two numbers more."""
    if isinstance(place, tuple) and ":" in place[0]:
        return (*place, 0, 0)
    return place
