"""The supervisor's end of a channel, and the program that runs at the other end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock_worker.channel.channel import Channel, pair
from penstock_worker.contract import CHANNEL_FD, ONLINE, READY, SERVICE, SLOT

DEADLINE_S = 30.0


PROGRAM = """
import asyncio, os, socket, sys, threading
from penstock_worker import process

over = None

def end(*_):
    over.set_result(None)

async def main():
    global over
    over = asyncio.get_running_loop().create_future()
    {body}
    await over

asyncio.run(main())
"""


APP = """
import asyncio, os, socket
from aiohttp import web
from penstock_worker import process

process.send(["imported", process.is_worker, process.slot, process.service])

@process.on_message
def callback(message, handle):
    if message == "break":
        raise ZeroDivisionError("in a callback")
    if message == "retire":
        process.retire("had enough")
        return
    process.send(["told", message], handle)
    if handle is not None:
        handle.close()

@process.on_disconnect
def gone():
    open("gone", "w").close()
    raise ZeroDivisionError("nobody to tell")

app = web.Application()
"""


class SupervisorEnd:
    """The supervisor's end of a channel, and the process at the other end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Path) -> None:
        self.loop = loop
        self.messages: list[Any] = []
        self.handles: list[socket.socket] = []
        self.disconnects = 0
        self._directory = directory
        self._stderr = directory / "stderr"
        self._child: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None

    def start(self, *arguments: str, passed: bool = True, named: bool = True) -> None:
        ours, theirs = pair()
        # The environment of the test run may name a channel; a program here has only its own.
        environment = {**os.environ, SLOT: "3", SERVICE: "web", "PORT": "0"}
        environment.pop(CHANNEL_FD, None)
        if named:
            environment[CHANNEL_FD] = str(theirs.fileno())
        with self._stderr.open("wb") as stderr:
            self._child = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                cwd=self._directory,
                pass_fds=[theirs.fileno()] if passed else [],
                stderr=stderr,
            )
        theirs.close()
        self.channel = Channel(self.loop, ours, self._on_message, self._on_disconnect)

    def run(self, body: str, *, passed: bool = True, named: bool = True) -> None:
        """Start a program without our runtime, with these lines in its loop."""
        text = PROGRAM.format(body=body.strip().replace("\n", "\n    "))
        self.start("-c", text, passed=passed, named=named)

    def serve(self) -> None:
        """Start a program under our runtime, and wait until it serves."""
        (self._directory / "shop.py").write_text(APP)
        self.start("-m", "penstock_worker.serve", "shop:app")
        self.until(lambda: {"cmd": READY} in self.messages)

    def send(self, message: Any, handle: socket.socket | None = None) -> None:
        assert self.channel is not None
        assert self.channel.send(message, handle)

    def received(self) -> list[Any]:
        """The messages received, without ONLINE."""
        return [m for m in self.messages if not (isinstance(m, dict) and m.get("cmd") == ONLINE)]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = self.loop.time() + DEADLINE_S
        while not condition():
            assert self.loop.time() < deadline, (self.messages, self.stderr())
            self.loop.run_until_complete(asyncio.sleep(0.002))

    def status(self) -> int:
        child = self._child
        assert child is not None
        self.until(lambda: child.poll() is not None)
        assert child.returncode is not None
        return child.returncode

    def signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def stderr(self) -> str:
        return self._stderr.read_text()

    def end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self.channel is not None:
            self.channel.close()
        for handle in self.handles:
            handle.close()

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        self.messages.append(message)
        if handle is not None:
            self.handles.append(handle)

    def _on_disconnect(self) -> None:
        self.disconnects += 1
