"""What is on a channel's wire: lines, and the envelope that a descriptor travels with.

Node's format for its child processes: one JSON value a line, UTF-8. A descriptor goes with
the line `{"cmd": "NODE_HANDLE", "type": …, "msg": …}` and is answered by NODE_HANDLE_ACK, or
by NODE_HANDLE_NACK where it did not arrive. Both name no descriptor, so one travels at a time.

Pure: what a line means and which envelope fits a socket. When which line is sent, and what
becomes of descriptors, is `channel`; what our own messages mean is nobody's business here.
"""

import json
import socket
from typing import Any, Final

MAX_LINE: Final = 1 << 20
"""Bytes of one message. The largest is a configuration with its text escaped."""

HANDLE: Final = "NODE_HANDLE"
ACK: Final = "NODE_HANDLE_ACK"
NACK: Final = "NODE_HANDLE_NACK"
RESERVED: Final = "NODE_"
"""What the `cmd` of a message starts with that is the wire's, and not shown to a program."""


def encoded(message: Any) -> bytes:
    """The line; ValueError if the message is not JSON, or longer than a peer would take."""
    try:
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a message of {len(line)} bytes is too long: at most {MAX_LINE}")
    return line


def decoded(line: bytes | bytearray) -> Any:
    """The message; ValueError if the line is none."""
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE} bytes")
    try:
        return json.loads(line.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {bytes(line[:80])!r}") from None


def command(message: Any) -> str:
    """Its `cmd`, or nothing: a program's message may be any value."""
    found = message.get("cmd") if isinstance(message, dict) else None
    return found if isinstance(found, str) else ""


def is_internal(message: Any) -> bool:
    """Is this one that Node would not show to a program?"""
    name = command(message)
    return name.startswith(RESERVED) and len(name) > len(RESERVED)


def envelope(message: Any, handle: socket.socket) -> dict[str, Any]:
    """What a socket travels with; TypeError if it is none that can."""
    if not isinstance(handle, socket.socket) or handle.fileno() < 0:
        raise TypeError(f"expected an open socket, not {type(handle).__name__}")
    inet = handle.family in (socket.AF_INET, socket.AF_INET6)
    found: dict[str, Any] = {"cmd": HANDLE, "type": "net.Socket", "msg": message}
    if inet and handle.type == socket.SOCK_DGRAM:
        six = handle.family == socket.AF_INET6
        return {**found, "type": "dgram.Socket", "dgramType": "udp6" if six else "udp4"}
    # A SEQPACKET socket is never sent to Node, which has no kind for it.
    unix = handle.family == socket.AF_UNIX and handle.type == socket.SOCK_SEQPACKET
    if not unix and not (
        handle.type == socket.SOCK_STREAM and (inet or handle.family == socket.AF_UNIX)
    ):
        raise TypeError(f"a socket of {handle.family!r}, {handle.type!r} cannot be sent")
    if handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found["type"] = "net.Server"
    return found


def _no_number(name: str) -> None:
    raise ValueError(name)
