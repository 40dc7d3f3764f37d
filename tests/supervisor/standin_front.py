"""A front that serves nobody: it takes orders, writes them down and does as `PLAY` says."""

import asyncio
import os
import sys

from penstock_proxy.config import FrontConfig
from penstock_worker.channel import Channel, Message, inherited


class Front:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.play = os.environ.get("PLAY", "")
        self.finished = asyncio.Event()
        sock = inherited(os.environ)
        assert sock is not None
        self.channel = Channel(loop, sock, self.ordered, self.finished.set)

    def ordered(self, message: Message) -> None:
        sys.stderr.write(f"got {message['cmd']} {message.get('slot', '')}".strip() + "\n")
        sys.stderr.flush()
        getattr(self, message["cmd"])(message)

    def configure(self, message: Message) -> None:
        for service in FrontConfig.model_validate(message["config"]).services:
            for target in service.targets:
                sys.stderr.write(f"slot {target.slot} joined={target.joined} up={target.up}\n")
            for listener in service.listeners:
                os.fstat(listener)
        sys.stderr.flush()
        if self.play == "refuse":
            self.channel.send({"cmd": "failed", "reason": "no such log"})
            os._exit(78)
        self.channel.send({"cmd": "ready"})

    def join(self, message: Message) -> None:
        if self.play == "hang up once":
            # Whoever comes next is told that the worker has joined, and gets no such order.
            self.channel.close()
            return
        self.channel.send(
            {
                "cmd": "rotation",
                "service": message["service"],
                "slot": message["slot"],
                "state": "up",
                "reason": "first check",
            }
        )

    def leave(self, message: Message) -> None:
        pass

    def reopen(self, message: Message) -> None:
        pass

    def stats(self, message: Message) -> None:
        if self.play != "silent":
            self.channel.send({"cmd": "stats", "seq": message["seq"], "metrics": {}, "pools": {}})

    def drain(self, message: Message) -> None:
        if self.play != "stubborn":
            self.finished.set()


async def main() -> None:
    await Front(asyncio.get_running_loop()).finished.wait()


asyncio.run(main())
