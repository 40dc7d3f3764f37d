"""The listening sockets of one service, whoever accepts from them.

Owns which sockets there are by scheme: one for each proxy on the same port (`ports`,
`handoff`), one for all workers (`shared`), or one for each worker's slot on the same port
(`reuseport`). The supervisor keeps all of them open, so whoever accepts can die, and the next
one goes on with the same queue.

Where several sockets have one port the kernel deals connections out to each of them, whether
anybody takes them or not. A worker's slot that nobody serves has its socket shut, for
otherwise every n-th client would wait in the dark; it gets a new one when somebody does. A
proxy's is covered by the other proxies as long as it is away: nothing that waits is lost.

Why not one socket for all proxies: an event loop cannot wait with EPOLLEXCLUSIVE, so every
connection would wake all of them, and whoever is quickest would have most of the clients. A
unix socket has no port to share, so that is how it is done there.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.listener import Access, Listener
from penstock_supervisor.snapshot import SocketKind, SocketView

if TYPE_CHECKING:
    from penstock_proxy.net.address import Address
    from penstock_supervisor.config.users import Identity

_TCP_INFO_UNACKED: Final = 24
"""Offset of tcpi_unacked in struct tcp_info: of a listener, who waits to be accepted."""


class ServiceListeners:
    """Opened when made; StartError says why it cannot be."""

    def __init__(self, service: Service, proxies: int = 1, owner: "Identity | None" = None) -> None:
        """`owner`: whose a unix socket is; None: ours."""
        self.service = service
        self._access = Access(
            None if service.socket_mode is None else int(service.socket_mode, 8),
            *((-1, -1) if owner is None or owner.is_current_user else (owner.uid, owner.gid)),
        )
        self.dropped = 0
        """Connections that waited on a socket when it was shut."""
        self._key = f"service.{service.name}.listen"
        self._kind = socket.SOCK_DGRAM if service.mode == "udp" else socket.SOCK_STREAM
        self._listening = False
        self._slots: dict[int, Listener] = {}
        """Of workers or proxies that have one each, those that are open."""
        first = self._open(service.listen)
        self.address: Address = first.address
        self._one: Listener | None = None
        split = service.has_proxy and proxies > 1 and not self.address.path
        if not split and service.scheme != "reuseport":
            self._one = first
            return
        # It was only to see that nobody else has the port, and which it is.
        first.close()
        try:
            for slot in range(proxies if split else service.workers):
                self._slots[slot] = self._open(str(self.address), reuseport=True)
        except StartError:
            self.close()
            raise

    def listen(self) -> None:
        """From now on clients can connect."""
        self._listening = True
        for listener in self._all():
            listener.listen()

    def proxy_fds(self, slot: int) -> tuple[int, ...]:
        """The descriptors that the proxy in this slot inherits."""
        if not self.service.has_proxy:
            return ()
        return ((self._one or self._slots[slot]).fileno(),)

    def proxy_socket(self, slot: int) -> socket.socket | None:
        """The socket of this proxy alone; None if all proxies accept from the same, or none."""
        if not self.service.has_proxy or self._one is not None:
            return None
        return self._slots[slot].socket

    def worker_fds(self, slot: int) -> tuple[int, ...]:
        """The descriptors that a process in this slot is given, opened anew if they were shut."""
        if self.service.has_proxy:
            return ()
        if self._one is not None:
            return (self._one.fileno(),)
        self.reopen(slot)
        return (self._slots[slot].fileno(),)

    def shut(self, slot: int) -> bool:
        """Take this worker's socket out of the port, whoever holds a copy; reuseport only.

        The last one stays: a client that waits has better chances than one that is refused.
        """
        listener = self._slots.get(slot)
        if self.service.has_proxy or listener is None or len(self._slots) < 2:
            return False
        if self._kind == socket.SOCK_STREAM:
            self.dropped += _waiting(listener.socket)
            # A worker that is stuck has a copy: closing ours would change nothing.
            listener.socket.shutdown(socket.SHUT_RDWR)
        del self._slots[slot]
        listener.close()
        return True

    def reopen(self, slot: int) -> socket.socket | None:
        """Give the worker a socket again; None if it has one, or shares one."""
        if self.service.has_proxy or self._one is not None or slot in self._slots:
            return None
        listener = self._slots[slot] = self._open(str(self.address), reuseport=True)
        if self._listening:
            listener.listen()
        return listener.socket

    def views(self) -> Iterator[SocketView]:
        """What the page of metrics says of each."""
        for slot, listener in self._slots.items():
            yield self._view(slot, listener)
        if self._one is not None and self._one.fileno() >= 0:
            yield self._view(None, self._one)

    def close(self) -> None:
        for listener in self._all():
            listener.close()
        self._slots.clear()

    def _all(self) -> tuple[Listener, ...]:
        return tuple(self._slots.values()) if self._one is None else (self._one,)

    def _open(self, address: str, *, reuseport: bool = False) -> Listener:
        listener = Listener(
            address,
            self._key,
            bind_only=True,
            kind=self._kind,
            reuseport=reuseport,
            access=self._access,
        )
        if self.service.command is not None and not self.service.has_proxy:
            # As from systemd: a plain program waits in accept. Ours does not mind.
            listener.socket.setblocking(True)
        return listener

    def _view(self, slot: int | None, listener: Listener) -> SocketView:
        inode = os.fstat(listener.fileno()).st_ino
        kind: SocketKind = "unix" if self.address.path else "tcp"
        if self._kind == socket.SOCK_DGRAM:
            kind = "udp"
        return SocketView(self.service.name, slot, inode, str(self.address), kind)


def _waiting(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED + 4)
    (count,) = struct.unpack_from("I", info, _TCP_INFO_UNACKED)
    return int(count)
