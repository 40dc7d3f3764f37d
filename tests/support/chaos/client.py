"""A client that verifies everything: it reads every byte itself and knows what it asked for.

It owns one connection, on the bare socket, so that it can disconnect in every way a client can.
An answer is either whole by its own framing, or `Cut` is raised. A byte behind the last answer
is never thrown away, because it might belong to another client.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

PIECE: Final = 1 << 16
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: close resets."""


class Cut(Exception):  # noqa: N818 — no error of this program: what a client may get to see
    """The connection ended before the answer did."""

    def __init__(self, how: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(how)
        self.was_reset = how != "closed"
        self.status = status
        """Of the answer that began; 0: none did."""
        self.body = body


class NonsenseError(Exception):
    """What came is not HTTP."""


@dataclass(slots=True)
class Answer:
    """A whole response. Names of fields are in lower case."""

    status: int
    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    trailers: bytes = b""
    interim: int = 0
    """How many 1xx came before."""

    @property
    def stays(self) -> bool:
        """May another request follow on this connection?"""
        return self.fields.get(b"connection", b"").lower() != b"close"


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.got = 0
        """Bytes received so far."""
        self.given = 0
        """Bytes sent so far, at most."""
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()

    @classmethod
    async def connect(cls, address: tuple[str, int], sock: socket.socket | None = None) -> Self:
        """OSError: nothing listens, or not any more."""
        client = cls(sock or socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        try:
            await client._loop.sock_connect(client.sock, address)
        except BaseException:
            client.sock.close()
            raise
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    # -- what is sent

    async def send(self, data: bytes) -> None:
        self.given += len(data)
        try:
            await self._loop.sock_sendall(self.sock, data)
        except OSError as error:
            raise Cut(type(error).__name__) from None

    # -- how it leaves

    def finish(self) -> None:
        """Half-close: nothing more is sent. A peer that is gone is no error."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def end(self, how: str) -> None:
        """As its last segment names it: fin or rst."""
        if how == "rst":
            self.reset()
        else:
            self.close()

    # -- what it reads

    @property
    def surplus(self) -> bytes:
        """What came and was not asked for yet."""
        return bytes(self._buffer)

    async def more(self) -> None:
        """Wait for some bytes. Cut: there are none any more."""
        try:
            data = await self._loop.sock_recv(self.sock, PIECE)
        except OSError as error:
            raise Cut(type(error).__name__) from None
        if not data:
            raise Cut("closed")
        self.got += len(data)
        self._buffer += data

    def take(self) -> bytes:
        """Everything that is here."""
        return self._take(len(self._buffer))

    async def until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            await self.more()
        return self._take(at + len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self.more()
        return self._take(size)

    async def there_and_back(self, data: bytes) -> bytes:
        """Send it and read as much, at the same time: no one buffers all of it."""

        async def give() -> None:
            with suppress(Cut):
                await self.send(data)

        giving = asyncio.create_task(give())
        try:
            return await self.exactly(len(data))
        finally:
            giving.cancel()
            await asyncio.wait([giving])

    async def rest(self) -> tuple[bytes, bool]:
        """Everything up to the end, and whether that was a clean one."""
        try:
            while True:
                await self.more()
        except Cut as cut:
            return self._take(len(self._buffer)), not cut.was_reset

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def answer(self, method: bytes = b"GET") -> Answer:
        """The next final response. Cut: it did not come, or not all of it."""
        answer = await self._head()
        interim = 0
        while answer.status < 200 and answer.status != 101:
            interim += 1
            answer = await self._head()
        answer.interim = interim
        if method == b"HEAD" or answer.status in (101, 204, 304):
            return answer
        body = bytearray()
        try:
            await self._body(answer, body)
        except Cut as cut:
            cut.status, cut.body = answer.status, bytes(body)
            raise
        answer.body = bytes(body)
        return answer

    async def _head(self) -> Answer:
        line, *lines = (await self.until(b"\r\n\r\n"))[:-4].split(b"\r\n")
        version, _, rest = line.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
            raise NonsenseError(line[:80])
        fields: dict[bytes, bytes] = {}
        for each in lines:
            name, colon, value = each.partition(b":")
            name = name.lower()
            if not colon or (name in fields and name in (b"content-length", b"x-chaos")):
                raise NonsenseError(each[:80])
            fields[name] = value.strip()
        if b"content-length" in fields and b"transfer-encoding" in fields:
            raise NonsenseError(b"two framings")
        return Answer(int(rest[:3]), fields)

    async def _body(self, answer: Answer, body: bytearray) -> None:
        """Into `body`, so that it is known how far it came."""
        if b"transfer-encoding" in answer.fields:
            while size := int(await self.until(b"\r\n"), 16):
                await self._into(body, size)
                if await self.exactly(2) != b"\r\n":
                    raise NonsenseError(b"a chunk that does not end")
            while (line := await self.until(b"\r\n")) != b"\r\n":
                answer.trailers += line
        elif (length := answer.fields.get(b"content-length")) is not None:
            await self._into(body, int(length))
        elif answer.stays:
            raise NonsenseError(b"an answer without an end")
        else:
            rest, clean = await self.rest()
            body += rest
            if not clean:
                raise Cut("reset")

    async def _into(self, body: bytearray, size: int) -> None:
        while size:
            if not self._buffer:
                await self.more()
            piece = self._take(size)
            size -= len(piece)
            body += piece
