"""Reads the PROXY header of an accepted connection, before anything else is done with it.

Owns: connections whose peer is not known yet, from accept until it is known or they are rejected.
Must not know: what becomes of a connection then (`FilterCallbacks`), or how to wait for more bytes
than were peeked at (`peek`).

What follows the header must stay in the kernel: it may be the first byte of a TLS handshake, of a
stream in mode tcp, or of a request that the worker reads itself. So bytes are peeked at first, and
then only those of the header are read off. A header may come in parts; each part is read off, so
that the descriptor is readable again only when there is more. A service without `accept_proxy`
has no such filter.
"""

import asyncio
from collections.abc import Iterator
from typing import Any, Final, Protocol

from penstock_proxy.errors import CLIENT_GONE, PROXY_HEADER, PROXY_UNTRUSTED, Fault
from penstock_proxy.listener.peek import DRAIN_S, PEEK, PeekedConnection
from penstock_proxy.net.peer import HeaderHandling, Peer, peer_from_header
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_worker.net.proxy_protocol import MAX_HEADER, Header, HeaderError, parse
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import TrustedProxies, peer_address

_PEEK_BYTES: Final = 512
"""Bytes of one peek. A header fits into the smallest segment (§2), so nearly every one is complete
in it; a longer one takes another turn."""


class FilterCallbacks(Protocol):
    """What the filter reports: every connection is opened, then its peer is known or it is
    rejected."""

    def connection_opened(self) -> None:
        """A connection was accepted; its descriptor counts from now on."""

    def peer_known(self, stream: Stream, peer: Peer) -> None:
        """Its peer is known. The callee owns the descriptor from now on."""

    def connection_rejected(self, address: str, fault: Fault | None, reason: str) -> None:
        """It is closed. No fault: the client closed before it sent anything."""


class ProxyProtocolFilter:
    """The connections of one service whose PROXY header has not come yet."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        timeout_s: float,
        trusted: TrustedProxies,
        callbacks: FilterCallbacks,
        *,
        handling: HeaderHandling,
    ) -> None:
        self.loop = loop
        self.timers = timers
        self.callbacks = callbacks
        self.consumes = handling == "consume"
        self.configure(timeout_s, trusted, handling)
        self.waiting: dict[PeekedConnection, None] = {}
        """The oldest first."""

    def configure(
        self, timeout_s: float, trusted: TrustedProxies, handling: HeaderHandling
    ) -> None:
        """Set what holds for connections that come from now on. Who consumes a header keeps to
        that: it depends on the scheme."""
        self.timeout_s = timeout_s
        self._trusted = trusted
        self._reads = handling != "ignore"

    def accepted(self, stream: Stream, peer: Any) -> None:
        """Report the peer of a connection as soon as its header is there."""
        self.callbacks.connection_opened()
        address = peer_address(peer)
        if address not in self._trusted:
            stream.close()
            self.callbacks.connection_rejected(
                address, PROXY_UNTRUSTED, "it is none of trusted_proxies"
            )
        elif self._reads:
            _HeaderReader(self, stream, peer).start(self.timeout_s)
        else:
            self.callbacks.peer_known(stream, Peer(peer))

    def draining(self) -> Iterator[None]:
        """Shorten the time that waiting connections have, of one in each step."""
        self.timeout_s = min(self.timeout_s, DRAIN_S)
        for reader in tuple(self.waiting):
            if reader in self.waiting:
                reader.limit_time(self.timeout_s)
            yield


class _HeaderReader(PeekedConnection):
    """One connection whose header has not come yet."""

    __slots__ = ("_consumed", "_filter", "_peer")

    def __init__(self, proxy_filter: ProxyProtocolFilter, stream: Stream, peer: Any) -> None:
        super().__init__(proxy_filter.loop, proxy_filter.timers, proxy_filter.waiting, stream)
        self._filter = proxy_filter
        self._peer = peer
        self._consumed = b""
        """The part of an incomplete header that was read off the connection."""

    def _timed_out(self) -> None:
        self._reject(PROXY_HEADER, "its PROXY header took too long")

    def end_idle(self, fault: Fault) -> bool:
        self._reject(None, "")
        return True

    def _peek(self) -> None:
        try:
            header = self._header()
        except BlockingIOError:
            self._wait_readable()
        except HeaderError as error:
            self._reject(PROXY_HEADER, str(error))
        except OSError as error:
            self._reject(CLIENT_GONE if self._consumed else None, error.strerror or "")
        else:
            if header is not None:
                self._finish(header)

    def _header(self) -> Header | None:
        """The complete header, read off the connection if it is to be consumed; None if
        incomplete."""
        consumes = self._filter.consumes
        seen = self._sock.recv(_PEEK_BYTES if consumes else MAX_HEADER, PEEK)
        if not seen:
            if self._consumed:
                raise HeaderError("its PROXY header broke off")
            raise ConnectionAbortedError
        parsed = parse(self._consumed + seen)
        # The bytes that we peeked at are there, so these reads are complete.
        if isinstance(parsed, Header):
            if consumes:
                self._sock.recv(parsed.size - len(self._consumed))
            return parsed
        if consumes:
            self._consumed += self._sock.recv(len(seen))
            self._wait_readable()
        elif self._is_at_end(len(seen)):
            raise HeaderError("its PROXY header broke off")
        else:
            self._wait_for_more(len(seen), parsed)
        return None

    def _finish(self, header: Header) -> None:
        self._filter.callbacks.peer_known(self._release(), peer_from_header(header, self._peer))

    def _reject(self, fault: Fault | None, reason: str) -> None:
        self._close()
        self._filter.callbacks.connection_rejected(peer_address(self._peer), fault, reason)
