"""The same client inside TLS. An end without close_notify is a cut, whatever TCP reports."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from tests.support.chaos.client import PIECE, Client, Cut


class TlsClient(Client):
    """OpenSSL beside the socket, so that it can still leave in every way."""

    async def shake_hands(self, context: ssl.SSLContext, name: str) -> None:
        """Before anything else."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._giving = asyncio.Lock()
        await self._do(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 14):
            await self._do(lambda at=at: self._tls.write(data[at : at + (1 << 14)]))  # type: ignore[misc]

    async def more(self) -> None:
        data = await self._do(lambda: self._tls.read(PIECE))
        if not data:
            raise Cut("closed")
        self.got += len(data)
        self._buffer += data

    async def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLZeroReturnError:
                raise Cut("closed") from None
            except (ssl.SSLError, OSError) as error:
                raise Cut(type(error).__name__) from None
            else:
                await self._flush()
                return done

    async def _feed(self) -> None:
        try:
            data = await self._loop.sock_recv(self.sock, PIECE)
        except OSError as error:
            raise Cut(type(error).__name__) from None
        if not data:
            raise Cut("closed without a word")
        self._in.write(data)

    async def _flush(self) -> None:
        async with self._giving:
            if self._out.pending:
                await Client.send(self, self._out.read())
