"""PROXY headers at the start of connections, in a worker that reads them itself.

Owns a connection from its adoption until its header is complete. Then the program's protocol gets
it, with the bytes after the header, and with a transport that names the real client. A worker
reads headers under `shared` and `reuseport`, where no proxy of ours is in front of it; under
`handoff`, because the proxy passes connections on as they are; and under `ports` with
`send_proxy`. Must not know what protocol serves the connection.

The program's protocol is made only when the header is complete. Until then its server does not
count the connection, time it out, or close it as idle.
"""

import asyncio
import logging
from asyncio import AbstractEventLoop, Transport
from typing import Any, Final

from penstock_worker.listener.connections import ProtocolFactory
from penstock_worker.net.named_transport import NamedTransport
from penstock_worker.net.proxy_protocol import Endpoint, Header, HeaderError, parse
from penstock_worker.net.trusted_proxies import AcceptProxy, TrustedProxies, peer_address
from penstock_worker.telemetry.counters import RequestCounters

_MAX_LINES: Final = 10
"""Log lines a period: strangers must not fill a disk."""
_PAUSE_S: Final = 10.0
HEADER: Final = "proxy_header"
UNTRUSTED: Final = "proxy_untrusted"
"""Why a connection is closed: values of a metric's label, the same as a proxy's."""

_log: Final = logging.getLogger("penstock.worker")


class ProxyHeaders:
    """All connections of one worker whose header is not complete."""

    def __init__(
        self, loop: AbstractEventLoop, accept_proxy: AcceptProxy, counters: RequestCounters
    ) -> None:
        self.loop = loop
        self.seconds = accept_proxy.seconds
        self.trusted = TrustedProxies(accept_proxy.trusted)
        self.open: set[_AwaitingHeader] = set()
        self._counters = counters
        # Present from the start, so that a rate can be computed from the first one on.
        counters.rejected.update({HEADER: 0, UNTRUSTED: 0})
        self._logged = 0
        self._period = -_PAUSE_S

    def wrap(self, make_protocol: ProtocolFactory) -> ProtocolFactory:
        """A factory whose protocols read a header first; a health check of ours has none."""
        return lambda probe: make_protocol(True) if probe else _AwaitingHeader(self, make_protocol)

    def close(self) -> None:
        """Abort those connections."""
        for connection in tuple(self.open):
            connection.transport.abort()

    def on_rejected(self, address: str, kind: str, reason: str) -> None:
        self._counters.rejected[kind] += 1
        now = self.loop.time()
        if now - self._period >= _PAUSE_S:
            self._period, self._logged = now, 0
        self._logged += 1
        if self._logged < _MAX_LINES:
            _log.warning("closed a connection from %s: %s", address or "a unix socket", reason)
        elif self._logged == _MAX_LINES:
            _log.warning("more connections are closed; the metrics count them all")


class _AwaitingHeader(asyncio.Protocol):
    """The protocol of one connection until its header is complete."""

    __slots__ = ("_address", "_headers", "_make_protocol", "_received", "_timer", "transport")

    transport: Transport

    def __init__(self, headers: ProxyHeaders, make_protocol: ProtocolFactory) -> None:
        self._headers = headers
        self._make_protocol = make_protocol
        self._received = b""
        self._address = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._headers.open.add(self)
        self._address = peer_address(transport.get_extra_info("peername"))
        if self._address in self._headers.trusted:
            self._timer = self._headers.loop.call_later(self._headers.seconds, self._time_out)
        else:
            self._reject(UNTRUSTED, "it is none of trusted_proxies")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += data
        try:
            found = parse(self._received)
        except HeaderError as error:
            self._reject(HEADER, str(error))
            return
        if isinstance(found, Header):
            self._hand_over(found)

    def eof_received(self) -> bool:
        if self._received:
            self._reject(HEADER, "its PROXY header broke off")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()

    def _hand_over(self, header: Header) -> None:
        self._stop_waiting()
        transport, rest = self.transport, self._received[header.size :]
        if isinstance(header.source, tuple):
            names = {"peername": _socket_name(header.source)}
            if isinstance(header.destination, tuple):
                names["sockname"] = _socket_name(header.destination)
            transport = NamedTransport(transport, names)
        protocol = self._make_protocol(False)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if rest and not transport.is_closing():
            protocol.data_received(rest)

    def _time_out(self) -> None:
        self._reject(HEADER, "its PROXY header took too long")

    def _reject(self, kind: str, reason: str) -> None:
        self._stop_waiting()
        self._headers.on_rejected(self._address, kind, reason)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        self._headers.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()


def _socket_name(endpoint: Endpoint) -> Any:
    """As `getpeername` returns it: with two more numbers for IPv6."""
    if isinstance(endpoint, tuple) and ":" in endpoint[0]:
        return (*endpoint, 0, 0)
    return endpoint
