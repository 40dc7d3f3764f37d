"""A proxy in this process, with real sockets: the supervisor's end of its channel, workers that
answer with their name, and clients."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import count
from typing import Any, Self

from penstock_proxy import messages
from penstock_proxy.config import ProxyConfig, ServiceConfig, Target
from penstock_proxy.config_parts import parts_of
from penstock_proxy.runtime.process import Proxy
from penstock_proxy.runtime.stats import joined
from penstock_worker.channel.channel import Channel

WAIT_S = 60.0


async def until(found: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not found():  # noqa: ASYNC110 — nothing sets an event for us
            await asyncio.sleep(0.01)


class Client:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int, **tls: Any) -> Self:
        async with asyncio.timeout(WAIT_S):
            return cls(*await asyncio.open_connection("127.0.0.1", port, **tls))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> bytes:
        """The body of the next response; its head is in `head`."""
        async with asyncio.timeout(WAIT_S):
            self.head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(self.head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return await self._reader.readexactly(length)

    async def get(self, path: str = "/") -> bytes:
        self.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        return await self.answer()

    async def upgrade(self) -> None:
        self.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert (await self._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")

    async def echo(self, data: bytes) -> bytes:
        """What comes back over an upgraded connection."""
        self.send(data)
        async with asyncio.timeout(WAIT_S):
            return await self._reader.readexactly(len(data))

    async def ends(self) -> bytes:
        """What comes until the other end closes; ConnectionResetError if that is how."""
        async with asyncio.timeout(WAIT_S):
            return await self._reader.read()

    def close(self) -> None:
        self._writer.close()


class Worker:
    """Answers each request with its name; one for /wait only when it may go on. /ws is upgraded,
    and then each byte comes back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heads: list[bytes] = []
        self.connections = 0
        self.go_on = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.go_on.set()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if b" /ws " in head:
                    writer.write(
                        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
                    )
                    while data := await reader.read(100):
                        writer.write(data)
                    break
                if b" /wait " in head:
                    await self.go_on.wait()
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


class RunningProxy:
    """The proxy, and what the supervisor has of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.proxy = Proxy(loop)
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._channel = Channel(loop, ours, self._received, lambda: None)
        self._theirs = Channel(loop, theirs, self.proxy.commands.take, self.proxy.supervisor_lost)
        self.received: list[Any] = []
        self.ports: dict[str, int] = {}
        """By service: that of its newest listener."""
        self._numbers = count(1)
        self._tasks: asyncio.Task[int] | None = None
        self._workers: list[Worker] = []
        self._clients: list[Client] = []
        self.listeners: dict[str, socket.socket] = {}

    def _received(self, message: Any, handle: socket.socket | None) -> None:
        assert handle is None
        self.received.append(message)

    def send(self, cmd: str, handle: socket.socket | None = None, **keys: Any) -> None:
        self._channel.send({"cmd": cmd, **keys}, handle)

    def send_each(self, *messages: Any) -> None:
        self._channel.send_each(messages)

    async def answer(self, cmd: str, **keys: Any) -> Any:
        """The next message of the proxy that says this."""

        def matching() -> list[Any]:
            return [
                one for one in self.received if one["cmd"] == cmd and keys.items() <= one.items()
            ]

        await until(matching)
        found = matching()[0]
        self.received.remove(found)
        return found

    async def worker(self, name: str) -> Worker:
        worker = Worker(name)
        await worker.start()
        self._workers.append(worker)
        return worker

    def target(self, worker: Worker, slot: int = 0, **keys: Any) -> Target:
        number = keys.pop("member", None) or next(self._numbers)
        keys = {"joined": True, "up": True, **keys}
        return Target(member=number, slot=slot, address=f"127.0.0.1:{worker.port}", **keys)

    @staticmethod
    def service(name: str, *targets: Target, **keys: Any) -> ServiceConfig:
        keys = {"access_log": "off", "listeners": (), **keys}
        return ServiceConfig(name=name, targets=targets, **keys)

    async def start(self, *services: ServiceConfig) -> None:
        """Start with these; each gets a listener, as by inheritance."""
        with_listeners = []
        for service in services:
            listener = self._new_listener(service.name)
            with_listeners.append(
                service.model_copy(update={"listeners": (listener.dup().detach(),)})
            )
        self._tasks = self.loop.create_task(self.proxy.run(self._theirs))
        await asyncio.sleep(0)
        config = ProxyConfig(services=tuple(with_listeners))
        self.send_each(*parts_of(config), {"cmd": messages.CONFIGURE})
        await self.answer(messages.READY)
        self.send(messages.ACCEPT)
        await self.stats()

    def _new_listener(self, service: str) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        if service in self.listeners:
            self.listeners[service].close()
        self.listeners[service] = listener
        self.ports[service] = listener.getsockname()[1]
        return listener

    async def reconfigure(self, *services: ServiceConfig, **finish: float) -> str:
        """Returns why it could not be carried out; empty: it was."""
        config, seq = ProxyConfig(services=services), next(self._numbers)
        change = {"cmd": messages.RECONFIGURE, "seq": seq, "finish": finish}
        self.send_each(*parts_of(config), change)
        error: str = (await self.answer(messages.RECONFIGURED, seq=seq))["error"]
        return error

    def listen(self, service: str) -> None:
        """Give it one more listener; the supervisor's copy of the one before is closed."""
        self.send(messages.LISTEN, self._new_listener(service), service=service)

    def stop_listening(self, service: str) -> None:
        """The service is removed: the supervisor closes its copy."""
        self.listeners.pop(service).close()

    async def client(self, service: str, **tls: Any) -> Client:
        client = await Client.connect(self.ports[service], **tls)
        self._clients.append(client)
        return client

    async def get(self, service: str, path: str = "/") -> bytes:
        client = await self.client(service)
        try:
            return await client.get(path)
        finally:
            client.close()

    async def stats(self) -> Any:
        seq = next(self._numbers)
        self.send(messages.STATS, seq=seq)
        last = await self.answer(messages.STATS, seq=seq)
        parts = [one for one in self.received if one["cmd"] == messages.STATS_PART]
        for one in parts:
            self.received.remove(one)
        return joined((one for one in parts if one["seq"] == seq), last)

    async def end(self) -> None:
        for client in self._clients:
            client.close()
        for listener in self.listeners.values():
            listener.close()
        self.send(messages.DRAIN, finish={}, within=1.0)
        if self._tasks is not None:
            async with asyncio.timeout(WAIT_S):
                assert await self._tasks == 0
        for worker in self._workers:
            await worker.close()
        for channel in (self._channel, self._theirs):
            channel.close()
        self.proxy._reactor.close()


@asynccontextmanager
async def running_proxy() -> AsyncIterator[RunningProxy]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    running = RunningProxy()
    try:
        yield running
    finally:
        await running.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def free_port() -> int:
    """A port where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port: int = sock.getsockname()[1]
        return port


def lines(path: str) -> list[dict[str, Any]]:
    """The lines of an access log in JSON."""
    with open(path, encoding="ascii") as file:  # noqa: PTH123
        return [json.loads(line) for line in file]
