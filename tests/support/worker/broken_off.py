"""What a client gets of a response that is broken off."""

import asyncio


class BrokenOffError(Exception):
    """A reset. `got` is what came before."""

    def __init__(self, got: bytes) -> None:
        super().__init__(got[-100:])
        self.got = got


async def until_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes. BrokenOffError: a reset came behind it."""
    got = bytearray()
    try:
        while piece := await reader.read(1 << 20):
            got += piece
    except ConnectionResetError:
        raise BrokenOffError(bytes(got)) from None
    return bytes(got)
