"""A connection that a test controls, at either end: a client that reads as little and as late as
the test wants, and workers that send what the test wants, byte for byte.

Every wait has a deadline and every socket a time-out.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

WAIT_S = 60.0
PIECE = 1 << 16
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.05
PAUSE_SHARE = 0.1
"""Of the time that was waited. To ask a run for its status or its metrics costs it and the test
5 to 20 ms of CPU, which tests that wait at the same time would take from those that work."""


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, as long as it may take on a busy machine."""
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < WAIT_S, f"waited in vain for {what or condition}"
        time.sleep(min(max(SHORTEST_PAUSE_S, waited * PAUSE_SHARE), LONGEST_PAUSE_S))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it was on the wire; `body` is without its framing."""

    status: int
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    trailers: bytes

    def __getitem__(self, name: str) -> str | None:
        """The field of that name, whatever its case; None if there is none."""
        values = [value for key, value in self.fields if key.lower() == name.lower().encode()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0].decode() if values else None


class Wire:
    """One end of a connection. Reads only what it is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT_S)
        self._buffer = bytearray()

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))

    def ask(self, *data: bytes, method: str = "GET") -> Answer:
        """Send a whole request and read the whole answer."""
        self.send(*data)
        return self.answer(method)

    def _more(self) -> None:
        data = self.sock.recv(PIECE)
        if not data:
            raise EOFError(bytes(self._buffer[-100:]))
        self._buffer += data

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark. EOFError: the end came first."""
        while mark not in self._buffer:
            self._more()
        return self.exactly(self._buffer.index(mark) + len(mark))

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def some(self) -> bytes:
        """What there is, at least a byte. EOFError: the end came first."""
        if not self._buffer:
            self._more()
        return self.exactly(len(self._buffer))

    def rest(self) -> bytes:
        """Everything up to the end."""
        with suppress(EOFError):
            while True:
                self._more()
        return self.exactly(len(self._buffer))

    def is_reset(self) -> bool:
        """Read to the end. True: it was a reset, and no end of file."""
        try:
            self.rest()
        except ConnectionResetError:
            return True
        return False

    def chunks(self) -> tuple[bytes, bytes]:
        """A chunked body and its trailers."""
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        trailers = b""
        while (line := self.until(b"\r\n")) != b"\r\n":
            trailers += line
        return body, trailers

    def answer(self, method: str = "GET") -> Answer:
        """The next response."""
        line, *lines = self.head()[:-4].split(b"\r\n")
        version, status, *_ = line.split(b" ", 2)
        fields = [(name, value.strip()) for name, _, value in (f.partition(b":") for f in lines)]
        answer = Answer(int(status), version, fields, b"", b"")
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer["Transfer-Encoding"]:
            assert not answer["Content-Length"]
            body, trailers = self.chunks()
            return replace(answer, body=body, trailers=trailers)
        if (length := answer["Content-Length"]) is not None:
            return replace(answer, body=self.exactly(int(length)))
        assert answer["Connection"] == "close"
        return replace(answer, body=self.rest())

    def finish(self) -> None:
        """Half-close: send nothing more, go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close it the rude way."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def is_ended(self) -> bool:
        """Wait for the end. True if nothing was left to read."""
        with suppress(ConnectionResetError):
            return not self.rest()
        return True

    def close(self) -> None:
        self.sock.close()


class Origin:
    """A worker, or whatever a test makes of one: `answer` is given each connection.

    A connection that ends without a byte was a health check. What `answer` finds wrong
    fails the test; that its client left is no fault.
    """

    def __init__(self, answer: Callable[[Wire], object], host: str = "127.0.0.1") -> None:
        self._answer = answer
        self._listener = socket.create_server((host, 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        self.faults: list[BaseException] = []
        self._wires: list[Wire] = []
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,))]
        self._threads[0].start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            wire = Wire(sock)
            thread = threading.Thread(target=self._serve, args=(wire,))
            with self._lock:
                self._wires.append(wire)
                self._threads.append(thread)
            thread.start()

    def _serve(self, wire: Wire) -> None:
        try:
            self._answer(wire)
        except (OSError, EOFError):
            pass
        except BaseException as fault:  # noqa: BLE001 -- raised by `close`, in the test's thread
            self.faults.append(fault)
        finally:
            # A test that keeps a wire sets it to None here.
            wire.close()

    def away(self) -> None:
        """From now on connecting is refused; connections that stand are cut."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for wire in self._wires:
                with suppress(OSError):
                    wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def back(self) -> None:
        """Listen again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._begin()

    def close(self) -> None:
        self.away()
        if self.faults:
            raise self.faults[0]
