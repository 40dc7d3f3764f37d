"""Who the client of a connection is, and how its requests are rewritten for a worker.

Owns: the client's address, whether it is a trusted proxy, for which address its connection is
counted, and the lines that each of its requests gets. They belong together: what a rewriter has
made of a connection is the middle of a line that the same rewriter has begun. So a connection
keeps its rewriter until it is given another one as a whole. Must not know: how requests are read
(`client_connection`), or why a rewriter changes (`runtime.service`).
"""

from typing import Any

from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http1.request import HeaderRewriter
from penstock_worker.net.trusted_proxies import peer_address


class ClientIdentity(Downstream):
    """The client of one connection."""

    __slots__ = ("_fields", "_origin", "_peer_address", "_rewriter", "_trusted")

    def __init__(
        self,
        service: HttpContext,
        peer: Any,
        fields: bytes,
        port: int,
        *,
        may_be_trusted: bool,
    ) -> None:
        self.service = service
        self.address = self._peer_address = peer_address(peer)
        rewriter = self._rewriter = service.rewriter
        self._origin = (may_be_trusted, port, fields)
        trusted = self._trusted = may_be_trusted and rewriter.trusts(self.address)
        if trusted and port:
            rewriter = self._rewriter = rewriter.at_port(port)
        self._fields = rewriter.connection_fields(self.address, port, fields, trusted=trusted)

    def use_rewriter(self, rewriter: HeaderRewriter) -> None:
        """Rewrite the requests that come from now on with this one, and trust whom it trusts."""
        may_be_trusted, port, fields = self._origin
        address = self._peer_address
        trusted = may_be_trusted and rewriter.trusts(address)
        if trusted != self._trusted:
            counted = self.counted_address
            self._trusted = trusted
            self.address = address
            self.service.client_limit.move(counted, self.counted_address)
        if trusted and port:
            rewriter = rewriter.at_port(port)
        self._rewriter = rewriter
        self._fields = rewriter.connection_fields(address, port, fields, trusted=trusted)

    @property
    def counted_address(self) -> str:
        """The address that the client limit counts this connection for; empty: not counted."""
        return "" if self._trusted else self.address
