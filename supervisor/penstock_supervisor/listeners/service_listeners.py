"""The listening sockets of one service.

Owns which sockets there are, by scheme: one for each proxy on the same port (`ports`,
`handoff`), one for all workers (`shared`), or one for each worker's slot on the same port
(`reuseport`). The supervisor keeps all of them open. So the process that accepts can die, and
the next one continues with the same accept queue.

If several sockets share a port, the kernel distributes connections among all of them, also to
sockets from which nothing accepts. So the socket of a worker's slot is closed while no worker
serves it; otherwise every n-th client would wait for nothing. It is opened again when a worker
is up. The socket of a proxy stays open: the other proxies accept from it while that proxy is
away, so no connection that waits is lost.

One socket for all proxies would not do. An event loop cannot wait with EPOLLEXCLUSIVE, so every
connection would wake all proxies, and the fastest one would get most of the clients. Only a unix
socket is shared like this, because it has no port that several sockets could share.

See docs/decisions/0006-one-listener-for-each-proxy.md.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Final

from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.listener import Access, Listener, SockAddress
from penstock_supervisor.snapshot import SocketKind, SocketView

if TYPE_CHECKING:
    from penstock_proxy.net.address import Address
    from penstock_supervisor.config.users import Identity

_TCP_INFO_UNACKED: Final = 24
"""Offset of tcpi_unacked in struct tcp_info: for a listener, the length of its accept queue."""


class ServiceListeners:
    """All sockets are opened by the constructor, which raises StartError."""

    def __init__(
        self,
        service: Service,
        proxies: int = 1,
        owner: "Identity | None" = None,
        *,
        eager: bool = True,
    ) -> None:
        """`owner`: the owner of a unix socket; None: the supervisor's own user. `eager`: each
        `reuseport` worker has a socket at once. Else only when it is started, because its
        clients would wait for it in vain; one is open, to keep the port."""
        self.service = service
        self._access = Access(
            None if service.socket_mode is None else int(service.socket_mode, 8),
            *((-1, -1) if owner is None or owner.is_current_user else (owner.uid, owner.gid)),
        )
        self.dropped = 0
        """Connections in the accept queue of a socket when it was closed."""
        self._key = f"service.{service.name}.listen"
        self._kind = socket.SOCK_DGRAM if service.mode == "udp" else socket.SOCK_STREAM
        self._listening = False
        self._slots: dict[int, Listener] = {}
        """The open sockets by slot, if each worker or each proxy has one of its own."""
        self._silent: set[int] = set()
        """Slots whose sockets do not listen, because nobody accepts from them yet."""
        listener = self._open(service.listen)
        self.address: Address = listener.address
        self._shared: Listener | None = None
        one_per_proxy = service.has_proxy and proxies > 1 and not self.address.path
        if not one_per_proxy and service.scheme != "reuseport":
            self._shared = listener
            return
        # It only had to find out that the port is free, and its number.
        listener.close()
        try:
            for slot in range(proxies if one_per_proxy else service.workers if eager else 1):
                self._slots[slot] = self._open(str(self.address), reuseport=True)
        except StartError:
            self.close()
            raise
        if service.scheme == "reuseport" and not eager:
            self._silent.add(0)

    def listen(self) -> None:
        """From now on clients can connect."""
        self._listening = True
        for slot, listener in self._slots.items():
            if slot not in self._silent:
                listener.listen()
        if self._shared is not None:
            self._shared.listen()

    @property
    def is_listening(self) -> bool:
        return self._listening

    @property
    def sockaddr(self) -> SockAddress:
        """Where its sockets are bound, as the kernel says."""
        return next(iter(self._open_listeners())).sockaddr

    def proxy_fds(self, slot: int) -> tuple[int, ...]:
        """The descriptors that the proxy in this slot inherits."""
        return tuple(one.fileno() for one in self._of_proxy(slot))

    def proxy_sockets(self, slot: int) -> tuple[socket.socket, ...]:
        """The sockets that the proxy in this slot accepts from; none if it has none."""
        return tuple(one.socket for one in self._of_proxy(slot))

    def proxy_socket(self, slot: int) -> socket.socket | None:
        """The socket of this proxy only; None if proxies share one, or the service has none, or
        nobody can wait in its queue yet."""
        is_silent = not self._listening or slot in self._silent
        if not self.service.has_proxy or self._shared is not None or is_silent:
            return None
        return None if slot not in self._slots else self._slots[slot].socket

    def _of_proxy(self, slot: int) -> tuple[Listener, ...]:
        listener = self._shared or self._slots.get(slot)
        return (listener,) if self.service.has_proxy and listener is not None else ()

    def open_for_proxies(self, proxies: int) -> tuple[int, ...]:
        """Open a socket for each of so many proxies that has none, and return their slots. It does
        not listen before `listen_for`. StartError, and then nothing is opened."""
        if not self.service.has_proxy or self.address.path or (self._shared and proxies < 2):
            return ()
        if self._shared is not None:
            self._shared.share_port()
            self._slots, self._shared = {0: self._shared}, None
        opened: list[int] = []
        try:
            for slot in range(proxies):
                if slot not in self._slots:
                    self._slots[slot] = self._open(str(self.address), reuseport=True)
                    opened.append(slot)
        except StartError:
            for slot in opened:
                self._slots.pop(slot).close()
            raise
        self._silent.update(opened)
        return tuple(opened)

    def listen_for(self, slot: int) -> None:
        """The proxy in this slot accepts: from now on it gets its share of the clients."""
        if slot in self._silent:
            self._silent.discard(slot)
            if self._listening:
                self._slots[slot].listen()

    def close_silent(self, slots: Iterable[int]) -> None:
        """Close the sockets of proxies that are not to be, if nobody could come to them."""
        for slot in self._silent.intersection(slots):
            self._silent.discard(slot)
            self._slots.pop(slot).close()

    def worker_fds(self, slot: int) -> tuple[int, ...]:
        """The descriptors that a worker in this slot inherits; a closed socket is opened again.

        An `app` listens itself when it serves. Until then no client comes to a worker that may
        not get ready: its last processes did not. A `command` is given what it expects.
        """
        if self.service.has_proxy:
            return ()
        if self._shared is not None:
            if self._shared.fileno() < 0:
                raise StartError(f"{self._key}: the service is not served any more")
            return (self._shared.fileno(),)
        return (self.open_slot(slot, listen=self.service.app is None).fileno(),)

    def close_slot(self, slot: int) -> bool:
        """Close this worker's socket, also the copies of others; `reuseport` only.

        False if there is nothing to close. The last socket stays open, because a client that
        waits is better off than one that is refused.
        """
        listener = self._slots.get(slot)
        if self.service.has_proxy or listener is None or len(self._slots) < 2:
            return False
        if self._kind == socket.SOCK_STREAM:
            self.dropped += _accept_queue_length(listener.socket)
            # Not only closed: a worker that is stuck has a copy, which would stay open.
            with suppress(OSError):  # It does not listen yet.
                listener.socket.shutdown(socket.SHUT_RDWR)
        del self._slots[slot]
        listener.close()
        return True

    def release_slot(self, slot: int) -> None:
        """Nobody is to come to this worker any more, and it goes; `reuseport` only. Our copy of
        its socket is closed, so its own is the last one: it accepts what waits, and closes it."""
        if not self.service.has_proxy and (listener := self._slots.pop(slot, None)) is not None:
            listener.close()

    def open_slot(self, slot: int, *, listen: bool = True) -> socket.socket:
        """The worker's socket, opened again if it was closed; `reuseport` only. StartError.

        `listen`: it listens when the other ones do; else whoever gets it has to see to that.
        """
        if slot not in self._slots:
            self._slots[slot] = self._open(str(self.address), reuseport=True)
        self._silent.discard(slot)
        if self._listening and listen:
            self._slots[slot].listen()
        return self._slots[slot].socket

    def handed_to(self, service: Service) -> "ServiceListeners":
        """The same sockets, as those of another service that has proxies, too. Whichever of both
        is not used in the end must not be closed."""
        heir = copy(self)
        heir.service = service
        heir._slots, heir._silent = dict(self._slots), set(self._silent)
        return heir

    def views(self) -> Iterator[SocketView]:
        """Each open socket, for the metrics."""
        for slot, listener in self._slots.items():
            yield self._view(slot, listener)
        if self._shared is not None and self._shared.fileno() >= 0:
            yield self._view(None, self._shared)

    def close(self, but: "Iterable[ServiceListeners]" = ()) -> None:
        """Close all sockets but those that these have as well; see `handed_to`."""
        kept = {listener for other in but for listener in other._open_listeners()}
        for listener in self._open_listeners():
            if listener not in kept:
                listener.close()
        self._slots.clear()

    def _open_listeners(self) -> tuple[Listener, ...]:
        return tuple(self._slots.values()) if self._shared is None else (self._shared,)

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
            # As systemd does, because a plain program blocks in accept. Our code works with both.
            listener.socket.setblocking(True)
        return listener

    def _view(self, slot: int | None, listener: Listener) -> SocketView:
        inode = os.fstat(listener.fileno()).st_ino
        kind: SocketKind = "unix" if self.address.path else "tcp"
        if self._kind == socket.SOCK_DGRAM:
            kind = "udp"
        return SocketView(self.service.name, slot, inode, str(self.address), kind)


def _accept_queue_length(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED + 4)
    (count,) = struct.unpack_from("I", info, _TCP_INFO_UNACKED)
    return int(count)
