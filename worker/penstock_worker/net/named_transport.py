"""A transport that names other addresses than its socket has.

Owns what a program sees as the two ends of its connection. Where a PROXY header has named a client,
that client is its peer (`listener/proxy_header`). Where the proxy comes over a unix socket, it is
what it would be over the worker's port: a program that looks at its peer, or trusts the fields of
a proxy on this machine, need not know of the socket (`listener/link_socket`).

Must not know who is at the far end.
"""

from asyncio import Transport
from collections.abc import Mapping
from typing import Any, Final

_DELEGATED: Final = (
    "abort", "can_write_eof", "close", "get_protocol", "get_write_buffer_limits",
    "get_write_buffer_size", "is_closing", "is_reading", "pause_reading", "resume_reading",
    "set_protocol", "set_write_buffer_limits", "write", "write_eof", "writelines",
)  # fmt: skip


class NamedTransport(Transport):
    """`names` has "peername", and perhaps "sockname", each as the socket module writes it. All
    other methods are those of the real transport, so that a write costs no extra call."""

    def __init__(self, transport: Transport, names: Mapping[str, Any]) -> None:
        super().__init__()
        self._transport = transport
        self._names = names
        for name in _DELEGATED:
            setattr(self, name, getattr(transport, name))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in self._names:
            return self._names[name]
        found = self._transport.get_extra_info(name, default)
        if name == "socket" and found is not None:
            # uvicorn asks the socket, and not the transport, for both names.
            return _NamedSocket(found, self._names)
        return found


class _NamedSocket:
    """The socket of such a transport, with the same names."""

    def __init__(self, sock: Any, names: Mapping[str, Any]) -> None:
        self._sock = sock
        self._names = names

    def getpeername(self) -> Any:
        return self._names["peername"]

    def getsockname(self) -> Any:
        return self._names["sockname"] if "sockname" in self._names else self._sock.getsockname()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
