"""The link between one proxy and one worker process.

A pair of SOCK_SEQPACKET sockets, made before the process is started. With several proxies there
is a pair for each, because a connection in flight must belong to one proxy only. The process
inherits one end, and the proxy gets copies of both. It sends connections through its own end. If
the process ends or stops, the proxy takes back from the other end what was not received. The
supervisor keeps its copies for the next proxy in the same slot. As long as they are open, no
connection in flight is lost.

See docs/decisions/0008-seqpacket-for-handoff.md.
"""

import socket
from itertools import count
from typing import Final, Self

_NUMBERS: Final = count(1)


class HandoffLink:
    """Both ends, for one process. The owner closes it."""

    def __init__(self, number: int, proxy: socket.socket, worker: socket.socket) -> None:
        self.number = number
        """Unique, also among the links of other processes in the same slot."""
        self.proxy = proxy
        self.worker = worker

    @classmethod
    def pair(cls) -> Self:
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        proxy.setblocking(False)
        worker.setblocking(False)
        return cls(next(_NUMBERS), proxy, worker)

    def close(self) -> None:
        self.proxy.close()
        self.worker.close()
