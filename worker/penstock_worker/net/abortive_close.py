"""Closing a connection so that its peer sees a reset, and not an end.

Owns one socket option. An end of file in the middle of a response can look like its end: where
the length is not known, HTTP/1.0 and a tunnel have nothing else. A reset cannot. The kernel keeps
the option, so it also holds for a process that is killed. Must not know what the connection was
for.
"""

import os
import socket
import struct
from contextlib import suppress
from typing import Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds (socket(7)): what is unsent is dropped, and the peer gets a reset."""
_END_ON_CLOSE: Final = struct.pack("ii", 0, 0)
"""As every socket begins: what is unsent is sent, and then the end."""


def reset_on_close(fd: int) -> None:
    """Have the kernel reset this connection when it is closed, whoever closes it. A descriptor
    that is closed already, or is no TCP connection, is left alone."""
    _set_linger(fd, _RESET_ON_CLOSE)


def end_on_close(fd: int) -> None:
    """Take `reset_on_close` back: all has been written."""
    _set_linger(fd, _END_ON_CLOSE)


def _set_linger(fd: int, option: bytes) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
