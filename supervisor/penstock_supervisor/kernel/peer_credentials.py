"""Who is at the other end of a unix socket, as the kernel reports it (SO_PEERCRED, unix(7))."""

import struct
from socket import SO_PEERCRED, SOL_SOCKET, socket
from typing import Final, NamedTuple

_UCRED: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


class PeerCredentials(NamedTuple):
    """The process that connected, or that began to listen."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket) -> PeerCredentials:
    return PeerCredentials(*_UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size)))
