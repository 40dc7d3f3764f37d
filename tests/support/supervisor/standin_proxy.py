"""A fake proxy without clients: it logs the supervisor's messages and obeys `BEHAVIOUR`.

A path is a file: as long as it is there, the proxy ends when it starts.
"""

import asyncio
import os
import socket
import sys

from penstock_proxy.config_parts import ReceivedParts
from penstock_proxy.messages import ADD_MEMBER
from penstock_worker.channel.channel import Channel, Message, inherited
from penstock_worker.contract import FAILED, PING, PONG, READY, STATS


class Proxy:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.behaviour = os.environ.get("BEHAVIOUR", "")
        self.finished = asyncio.Event()
        self.slots: dict[tuple[str, int], int] = {}
        """By service and number of the member."""
        self.parts = ReceivedParts()
        sock = inherited(os.environ)
        assert sock is not None
        self.channel = Channel(loop, sock, self.received, self.finished.set)

    def received(self, message: Message, handle: socket.socket | None) -> None:
        if handle is not None:
            handle.close()
        if message["cmd"] == ADD_MEMBER:
            self.slots[message["service"], message["member"]] = message["slot"]
        slot: int | str = ""
        if "member" in message:
            slot = self.slots.get((message["service"], message["member"]), "")
        sys.stderr.write(f"got {message['cmd']} {slot}".strip() + "\n")
        sys.stderr.flush()
        if message["cmd"] == PING:
            if self.behaviour != "silent":
                self.channel.send({"cmd": PONG})
            return
        name = "stats" if message["cmd"] == STATS else message["cmd"]
        getattr(self, name)(message)

    def targets(self, message: Message) -> None:
        self.parts.add_targets(message["targets"])

    def service(self, message: Message) -> None:
        self.parts.add_service(message["service"])

    def configure(self, _: Message) -> None:
        for service in self.parts.take_config().services:
            for target in service.targets:
                self.slots[service.name, target.member] = target.slot
                sys.stderr.write(f"slot {target.slot} joined={target.joined} up={target.up}\n")
            for listener in service.listeners:
                os.fstat(listener)
        sys.stderr.flush()
        if self.behaviour == "refuse":
            self.channel.send({"cmd": FAILED, "reason": "no such log"})
            os._exit(78)
        if self.behaviour.startswith("/") and os.path.exists(self.behaviour):  # noqa: PTH110
            os._exit(5)
        self.channel.send({"cmd": READY})

    def join(self, message: Message) -> None:
        if self.behaviour == "hang up once":
            # The next process gets this in its configuration, and not as a message.
            self.channel.close()
            return
        self.channel.send(
            {
                "cmd": "rotation",
                "service": message["service"],
                "member": message["member"],
                "state": "up",
                "reason": "first check",
            }
        )

    def add_member(self, message: Message) -> None:
        pass

    def remove_member(self, message: Message) -> None:
        pass

    def leave(self, message: Message) -> None:
        pass

    def drain_worker(self, message: Message) -> None:
        if self.behaviour != "deaf":
            self.channel.send({"cmd": "worker_drained", "seq": message["seq"]})

    def link(self, message: Message) -> None:
        pass

    def unlink(self, message: Message) -> None:
        self.channel.send({"cmd": "unlinked", "link": message["link"]})

    def accept(self, message: Message) -> None:
        pass

    def cover(self, message: Message) -> None:
        pass

    def uncover(self, message: Message) -> None:
        pass

    def reopen(self, message: Message) -> None:
        pass

    def stats(self, message: Message) -> None:
        if self.behaviour != "silent":
            self.channel.send({"cmd": STATS, "seq": message["seq"], "metrics": {}, "pools": {}})

    def drain(self, message: Message) -> None:
        if self.behaviour != "stubborn":
            self.finished.set()


async def main() -> None:
    await Proxy(asyncio.get_running_loop()).finished.wait()


asyncio.run(main())
