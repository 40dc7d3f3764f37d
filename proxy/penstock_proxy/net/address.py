"""Where to connect or listen, as people write it.

Owns: the form of an address in the configuration and in messages: "host:port", "[v6]:port" or
"unix:/path". Must not know: how a host name is resolved. No I/O.
"""

import re
from typing import Final, NamedTuple

MAX_PATH: Final = 107
"""Bytes of a unix socket's path (unix(7): 108 with the zero byte)."""


class Address(NamedTuple):
    """Where to connect or listen: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read "host:port", "[v6]:port" or "unix:/path"; ValueError says what was expected."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or len(path.encode()) > MAX_PATH or "\0" in path:
            raise ValueError(f"expected a path of 1 to {MAX_PATH} bytes after unix:")
        return Address(path=path)
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\s:\[\]/,]+)):([0-9]{1,5})", text
    )
    if match is None:
        if port := re.fullmatch(r":?([0-9]{1,5})", text):
            # For other programs a port alone means every interface. Here that has to be asked for.
            local, anywhere = f'"127.0.0.1:{port[1]}"', f'"0.0.0.0:{port[1]}"'
            raise ValueError(f"expected a host too: {local} is this machine, {anywhere} anywhere")
        raise ValueError('expected "host:port", "[v6 address]:port" or "unix:/path"')
    if int(match[3]) > 65535:
        raise ValueError("expected a port of at most 65535")
    return Address(host=match[1] or match[2], port=int(match[3]))
