"""A receiver that records what its transport calls."""

from typing import TYPE_CHECKING, Any

from penstock_proxy.net.transport import FirstReceiver, Transport

if TYPE_CHECKING:
    from collections.abc import Callable


class Recorder(FirstReceiver):
    """Keeps the data, and in `calls` every other call in its order."""

    transport: Any

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = b""
        self.stays_open = False
        self.on_data: Callable[[bytes], object] = lambda _: None
        self.error: Exception | None = None

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def eof_received(self) -> bool:
        self.calls.append("end")
        return self.stays_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self.calls.append("lost")
