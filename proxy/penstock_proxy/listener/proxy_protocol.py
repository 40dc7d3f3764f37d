"""What happens to an accepted connection before it is delivered: its PROXY header is read.

Owns: connections that have not said yet whose they are, from accepting until that is known
or they are turned away. Must not know: what becomes of one that has entered (`Gate`), how to
wait for more than has been looked at (`peek`).

What follows the header is not ours to read: it may be the first byte of a TLS handshake, of
a relayed stream, or of a request that the worker reads itself. So bytes are looked at first,
and taken as far as they are the header's, part by part if it comes so: then the descriptor is
readable again only when there is more. A service without anything to find out here never
makes an entrance.
"""

import asyncio
from typing import Any, Final, Protocol

from penstock_proxy.errors import CLIENT_GONE, PROXY_HEADER, PROXY_UNTRUSTED, Fault
from penstock_proxy.listener.peek import PEEK, STOPPING_S, Peeked
from penstock_proxy.net.peer import HeaderHandling, Peer, peer_from_header
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_worker.net.proxy_protocol import MAX_HEADER, Header, HeaderError, parse
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import TrustedProxies, peer_address

_LOOK: Final = 512
"""Bytes looked at at once. A header is smaller than the smallest segment (§2), so that is all
of nearly every one; a longer one takes another turn."""


class Gate(Protocol):
    """Whose entrance it is. Each connection arrives, and then enters or is turned away."""

    def arrived(self) -> None:
        """There is one more descriptor."""

    def entered(self, stream: Stream, peer: Peer) -> None:
        """Owns the descriptor from now on."""

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """It is closed; no fault: it left without a word."""


class ProxyProtocolFilter:
    """All who stand in the entrance of one service."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        head_s: float,
        trusted: TrustedProxies,
        gate: Gate,
        *,
        handling: HeaderHandling,
    ) -> None:
        self.loop = loop
        self.timers = timers
        self.gate = gate
        self.head_s = head_s
        self.takes = handling == "consume"
        self.inside: set[Peeked] = set()
        self._reads = handling != "ignore"
        self._trusted = trusted

    def accepted(self, stream: Stream, peer: Any) -> None:
        """Let a connection enter as soon as its header is there."""
        self.gate.arrived()
        address = peer_address(peer)
        if address not in self._trusted:
            stream.close()
            self.gate.turned_away(address, PROXY_UNTRUSTED, "it is none of trusted_proxies")
        elif self._reads:
            _Arrival(self, stream, peer).begin(self.head_s)
        else:
            self.gate.entered(stream, Peer(peer))

    def drain(self) -> None:
        """Who is inside gets a moment, and no more."""
        self.head_s = min(self.head_s, STOPPING_S)
        for arrival in self.inside:
            arrival.hurry(self.head_s)


class _Arrival(Peeked):
    """One connection that has not entered."""

    __slots__ = ("_got", "_peer", "_proxy_protocol")

    def __init__(self, entrance: ProxyProtocolFilter, stream: Stream, peer: Any) -> None:
        super().__init__(entrance.loop, entrance.timers, entrance.inside, stream)
        self._proxy_protocol = entrance
        self._peer = peer
        self._got = b""
        """Taken, and part of a header that has not all come."""

    def _too_late(self) -> None:
        self._turn_away(PROXY_HEADER, "its PROXY header took too long")

    def _look(self) -> None:
        try:
            header = self._header()
        except BlockingIOError:
            self._await()
        except HeaderError as error:
            self._turn_away(PROXY_HEADER, str(error))
        except OSError as error:
            self._turn_away(CLIENT_GONE if self._got else None, error.strerror or "")
        else:
            if header is not None:
                self._enter(header)

    def _header(self) -> Header | None:
        """All of it, taken if it is to be; None if more has to come."""
        takes = self._proxy_protocol.takes
        seen = self._sock.recv(_LOOK if takes else MAX_HEADER, PEEK)
        if not seen:
            if self._got:
                raise HeaderError("its PROXY header broke off")
            raise ConnectionAbortedError
        found = parse(self._got + seen)
        # What was seen is there to be taken.
        if isinstance(found, Header):
            if takes:
                self._sock.recv(found.size - len(self._got))
            return found
        if takes:
            self._got += self._sock.recv(len(seen))
            self._await()
        elif self._is_all(len(seen)):
            raise HeaderError("its PROXY header broke off")
        else:
            self._await_beyond(len(seen), found)
        return None

    def _enter(self, header: Header) -> None:
        self._proxy_protocol.gate.entered(self._release(), peer_from_header(header, self._peer))

    def _turn_away(self, fault: Fault | None, reason: str) -> None:
        self._close()
        self._proxy_protocol.gate.turned_away(peer_address(self._peer), fault, reason)
