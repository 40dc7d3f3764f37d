"""A WebSocket client that a test controls, frame by frame (RFC 6455)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

_HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_TEXT, _CLOSE = 1, 8


class WebSocket:
    """An open WebSocket at /ws."""

    def __init__(self, run: "Cluster") -> None:
        self.wire: Wire = run.connect()
        self.wire.send(_HANDSHAKE)
        assert self.wire.head().startswith(b"HTTP/1.1 101 ")

    def _send(self, opcode: int, data: bytes) -> None:
        # Masked with zeros, so that it can be read in a trace.
        self.wire.send(bytes((0x80 | opcode, 0x80 | len(data))), bytes(4), data)

    def _frame(self) -> tuple[int, bytes]:
        first, length = self.wire.exactly(2)
        assert length < 126
        return first & 0x0F, self.wire.exactly(length)

    def echo(self, text: bytes) -> None:
        self._send(_TEXT, text)
        assert self._frame() == (_TEXT, text)

    def close_code(self) -> int:
        """Wait for the server's close, and return its code."""
        opcode, data = self._frame()
        assert opcode == _CLOSE
        return int.from_bytes(data[:2])

    def answer_close(self, code: int) -> None:
        """Answer the close, and wait for the end of the connection."""
        self._send(_CLOSE, code.to_bytes(2))
        assert self.wire.is_ended()
