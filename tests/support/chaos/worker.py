"""A worker that misbehaves: the program that storms run as their `command`.

It serves HTTP, or echoes (`tcp`), on PORT or on the listening socket that it was given. `deal`
decides what it does wrong, and when. The worker notes it there, so that the storm can account
for it. The arguments of the command line are `http`, `direct` or `tcp`, the seed, and how often.
"""

import asyncio
import os
import random
import signal
import socket
import sys
import time
from contextlib import closing, suppress

from tests.support.chaos import deal
from tests.support.chaos.client import PIECE, Client, Cut

SPIN_S = 0.4
FAULTS = {"http": deal.HTTP_FAULTS, "direct": deal.DIRECT_FAULTS, "tcp": deal.TCP_FAULTS}
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


class Worker:
    """The process."""

    def __init__(self, mode: str, seed: int, rate: float) -> None:
        self._serve = self._echo if mode == "tcp" else self._http
        self._faults = FAULTS[mode]
        self._seed = seed
        self._rate = rate
        self._slot = int(os.environ["PENSTOCK_SLOT"])
        self._leaving = False
        self._idle: set[Client] = set()

    async def run(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        leave = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, leave.set)
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(self._accept(listener, group))
            await leave.wait()
            accepting.cancel()
            listener.close()
            self._leaving = True
            for client in self._idle:
                with suppress(OSError):
                    client.sock.shutdown(socket.SHUT_RDWR)

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            group.create_task(self._one(Client(sock)))

    async def _one(self, client: Client) -> None:
        # The proxy may be killed in the middle of its words.
        with closing(client), suppress(Cut, ValueError, OSError):
            await self._serve(client)

    def _fault(self, name: bytes) -> str:
        found = deal.fault(self._seed, self._slot, name, self._rate, self._faults)
        deal.note(found)
        return found

    async def _is_at_once(self, fault: str) -> bool:
        """Faults before the first byte of an answer."""
        if fault == "blocked":
            until = time.monotonic() + SPIN_S
            while time.monotonic() < until:
                pass
        return fault == "blocked"

    # -- tcp

    async def _echo(self, client: Client) -> None:
        """Everything back; the first bytes are a name."""
        while True:
            if not client.surplus:
                await client.more()
            data = client.take()
            fault = self._fault(data[:64])
            await self._is_at_once(fault)
            if fault == "death":
                await client.send(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.startswith("cut") or fault == "half-close":
                await client.send(data[: len(data) // 2])
                await self._break_off(client, fault)
                return
            elif fault == "drip":
                await drip(client, data)
            else:
                await client.send(data)

    async def _break_off(self, client: Client, fault: str) -> None:
        if fault == "half-close":
            client.finish()
            await client.rest()
        client.end("rst" if fault == "cut by a reset" else "fin")

    # -- http

    async def _http(self, client: Client) -> None:
        stays = True
        while stays and not self._leaving:
            if not client.surplus:
                self._idle.add(client)
                try:
                    await client.more()
                finally:
                    self._idle.discard(client)
            stays = await self._answer(client)

    async def _answer(self, client: Client) -> bool:
        """One request and its answer. Is there another one?"""
        head = await client.until(b"\r\n\r\n")
        method, target, version = head.split(b"\r\n", 1)[0].split(b" ")
        lower = head.lower()
        _, name, size, form = target.split(b"/")
        if deal.is_killed_by(form, self._slot):
            os.kill(os.getpid(), signal.SIGKILL)
        fault = self._fault(name)
        stays = version == b"HTTP/1.1" and form != b"until-close"
        stays = stays and b"\r\nconnection: close\r\n" not in lower
        early = fault == "early" and method == b"POST"
        data = b"" if early else await request_body(client, lower)
        if b"\r\nupgrade: chaos\r\n" in lower:
            await client.send(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: chaos\r\n")
            await client.send(b"X-Chaos: %b\r\n\r\n" % name)
            await self._echo(client)
            return False
        out = response(
            name, int(size), form, deal.digest(data), stays=stays, old=version[-1:] == b"0"
        )
        if method == b"HEAD":
            out = out[: out.index(b"\r\n\r\n") + 4]
        if early:
            # What is sent on is not read: the close that follows is a reset.
            await client.send(out)
            return False
        ends = form == b"until-close" and method != b"HEAD"
        return await self._send(client, name, out, fault, ends=ends) and stays

    async def _send(
        self, client: Client, name: bytes, out: bytes, fault: str, *, ends: bool
    ) -> bool:
        """The answer, or what becomes of it."""
        dice = random.Random(name)
        at = dice.randrange(len(out))
        if fault == "cut" and ends:
            # No client can distinguish this from the end.
            fault = "cut by a reset"
        if fault in ("silence", "reset"):
            client.end("rst" if fault == "reset" else "fin")
            return False
        if fault == "never":
            await client.rest()
            return False
        if fault == "garbage":
            await client.send(dice.randbytes(dice.randrange(1, 3000)))
            return False
        if fault in ("death", "cut", "cut by a reset", "half-close"):
            await client.send(out[:at])
            if fault == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            await self._break_off(client, fault)
            return False
        await self._is_at_once(fault)
        if fault == "surplus" and ends:
            # No client can distinguish this from the rest.
            fault = ""
        await self._bend(client, out, fault)
        return fault != "surplus" and not ends

    async def _bend(self, client: Client, out: bytes, fault: str) -> None:
        """A whole answer in an unusual form."""
        if fault == "two framings":
            out = out.replace(
                b"\r\n", b"\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", 1
            )
        elif fault == "interim":
            out = EARLY * 3 + out
        elif fault == "flood":
            out = EARLY * 200 + out
        elif fault == "surplus":
            out += b"more than was asked for"
        if fault == "drip":
            await drip(client, out)
        else:
            await client.send(out)


async def drip(client: Client, data: bytes) -> None:
    """In small pieces, each in a turn of its own."""
    for at in range(0, len(data), max(1, len(data) // 50)):
        await client.send(data[at : at + max(1, len(data) // 50)])
        await asyncio.sleep(0.001)


async def request_body(client: Client, lower: bytes) -> bytes:
    if b"\r\ntransfer-encoding: chunked\r\n" in lower:
        data = bytearray()
        while size := int(await client.until(b"\r\n"), 16):
            data += await client.exactly(size)
            await client.exactly(2)
        await client.until(b"\r\n")
        return bytes(data)
    if (start := lower.find(b"\r\ncontent-length:")) >= 0:
        return await client.exactly(int(lower[start + 17 : lower.index(b"\r\n", start + 2)]))
    return b""


def response(
    name: bytes, size: int, form: bytes, digest: bytes, *, stays: bool, old: bool
) -> bytes:
    """A whole response; `old`: for a client that knows no chunks."""
    body = deal.body(name, size)
    head = b"HTTP/1.1 200 OK\r\nX-Chaos: %b\r\nX-Digest: %b\r\n" % (name, digest)
    if not stays or form == b"until-close":
        head += b"Connection: close\r\n"
    if form == b"until-close":
        return head + b"\r\n" + body
    if form == b"sized" or old:
        return head + b"Content-Length: %d\r\n\r\n" % size + body
    pieces = [body[at : at + PIECE // 3] for at in range(0, size, PIECE // 3)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def main(mode: str, seed: str, rate: str) -> None:
    if deal.is_broken(int(os.environ["PENSTOCK_SLOT"])):
        sys.exit("half of the new version is not there yet")
    if "LISTEN_FDS" in os.environ:
        listener = socket.socket(fileno=3)
    else:
        listener = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])), backlog=1024)
    listener.setblocking(False)
    asyncio.run(Worker(mode, int(seed), float(rate)).run(listener))


if __name__ == "__main__":
    main(*sys.argv[1:])
