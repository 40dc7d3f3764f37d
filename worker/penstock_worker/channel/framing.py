"""What is on a channel's wire: lines, and the envelope that a descriptor travels with.

This is the format of Node's child processes: one JSON value a line, UTF-8. A descriptor goes
with the line `{"cmd": "NODE_HANDLE", "type": …, "msg": …}`. The answer is NODE_HANDLE_ACK, or
NODE_HANDLE_NACK if it did not arrive. Neither says which descriptor is meant, so one at a time
is under way.

Owns how a line is encoded and which envelope fits a socket. Must not know when a line is
sent or what becomes of its descriptor (`channel`, `send_queue`), nor what our messages mean. No
I/O.
"""

import json
import socket
from typing import Any, Final

MAX_LINE: Final = 1 << 20
"""Bytes of one message. The largest is a configuration."""

HANDLE: Final = "NODE_HANDLE"
ACK: Final = "NODE_HANDLE_ACK"
NACK: Final = "NODE_HANDLE_NACK"
RESERVED: Final = "NODE_"
"""What the `cmd` of an internal message starts with. Node shows none of them to a program."""


def encode(message: Any) -> bytes:
    """The line; ValueError if the message is not JSON, or longer than a peer accepts."""
    try:
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a message of {len(line)} bytes is too long: at most {MAX_LINE}")
    return line


def decode(line: bytes | bytearray) -> Any:
    """The message; ValueError if the line is too long, or not JSON."""
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE} bytes")
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {bytes(line[:80])!r}") from None


def command(message: Any) -> str:
    """Its `cmd`, or "": a program's message may be any value."""
    found = message.get("cmd") if isinstance(message, dict) else None
    return found if isinstance(found, str) else ""


def is_internal(message: Any) -> bool:
    """Is this a message that Node would not show to a program?"""
    name = command(message)
    return name.startswith(RESERVED) and len(name) > len(RESERVED)


def envelope(message: Any, handle: socket.socket) -> dict[str, Any]:
    """The message around a socket that is sent; TypeError if no peer could receive it."""
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


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
