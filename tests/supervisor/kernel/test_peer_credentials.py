import os
import socket

from penstock_supervisor.kernel.peer_credentials import peer_credentials


def test_peer_credentials_come_from_the_kernel() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one) == (os.getpid(), os.geteuid(), os.getegid())
