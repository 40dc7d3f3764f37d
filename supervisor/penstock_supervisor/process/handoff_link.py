"""The link between one proxy and one worker process, as the supervisor keeps it.

A pair of SOCK_SEQPACKET sockets, made before the process is started; with several proxies a
pair for each, because what is on its way must be one proxy's alone. The process inherits one
end, the proxy gets copies of both: it sends connections through the one, and takes back from
the other what a process that died or stopped had not taken. Our own copies are for the next
proxy in its slot: as long as they are open, nothing that is on its way can be lost.
"""

import socket
from itertools import count
from typing import Final, Self

_NUMBERS: Final = count(1)


class HandoffLink:
    """Both ends, for one process; closed by whoever made it."""

    def __init__(self, number: int, proxy: socket.socket, worker: socket.socket) -> None:
        self.number = number
        """Tells it from the links of other processes in the same slot."""
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
