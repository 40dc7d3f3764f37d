"""A real process of a test, the exits that were reported, and whether it is gone."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import psutil

from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import ExecSpec
from penstock_supervisor.process.spawn import Exit, Process

WAIT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 — the kernel sets no event
            await asyncio.sleep(0.01)


class Run:
    """A process, and the exits that were reported."""

    def __init__(
        self,
        guardian_: Guardian,
        *argv: str,
        inherited: tuple[int, ...] = (),
        listen: tuple[int, ...] = (),
        **more: Any,
    ) -> None:
        """`more` are other fields of its `ExecSpec`."""
        self.exits: list[Exit] = []
        self.groups_ended = 0
        # A supervisor that got sockets itself must not pass these variables on.
        environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "7"}
        program = ExecSpec(
            argv, environment, inherited=inherited, listen=listen, fd_name="web", **more
        )
        loop = asyncio.get_running_loop()
        self.process = Process(program, loop, guardian_, self.exits.append, self._group_ended)
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def _group_ended(self) -> None:
        self.groups_ended += 1

    async def ended(self) -> Exit:
        await until(lambda: bool(self.exits))
        os.close(self.stdout)
        os.close(self.process.stderr)
        (exit_,) = self.exits
        return exit_

    async def line(self) -> str:
        data = bytearray()

        def read() -> bool:
            try:
                data.extend(os.read(self.stdout, 4096))
            except BlockingIOError:
                return False
            return data.endswith(b"\n")

        await until(read)
        return data.decode().strip()


def shell(script: str) -> tuple[str, str, str]:
    return "sh", "-c", script


def is_gone(pid: int) -> bool:
    """Dead, or a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
