"""A receiver that records its calls, for the tests of transports."""

from typing import TYPE_CHECKING, Any

from penstock_proxy.net.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable


class Notes:
    """Keeps the data, and the names of all other calls in `said`."""

    transport: Any

    def __init__(self) -> None:
        self.said: list[str] = []
        self.data = b""
        self.stays_open = False
        self.on_data: Callable[[bytes], object] = lambda _: None
        self.error: Exception | None = None

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.said.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def eof_received(self) -> bool:
        self.said.append("end")
        return self.stays_open

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self.said.append("lost")
