"""A peer as a subject of a comparison: starts it through its keeper, and finds its processes.

It is ready when every address answers and the program has answered through the front as often as
it takes to reach each worker. Its private directory has its files, sockets and logs; the keeper
removes it.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare.host import resource_usage
from penstock_supervisor.compare.peers import catalog
from penstock_supervisor.compare.peers.keeper import STOP_S, last_line
from penstock_supervisor.compare.peers.recipe import Recipe, Setting
from penstock_supervisor.compare.peers.servers import CLUSTER_SCRIPT, PYTHON
from penstock_supervisor.compare.subject import Roles, SubjectError
from penstock_supervisor.config.environment import inherited_environment

_ARGV: Final = (sys.executable, "-P", "-m", "penstock_supervisor.compare.peers.keeper")
_START_S: Final = 30.0
_POLL_S: Final = 0.1
_REQUEST_S: Final = 5.0
SBIN: Final = "/usr/sbin:/usr/local/sbin:/sbin"
"""Where Debian has nginx and haproxy, and where a user's PATH does not look."""
_ANSWERS_FOR_EACH_WORKER: Final = 4

MakeSetting = Callable[[str, tuple[int, ...]], Setting]
"""From the private directory and free ports, which are known when it is started."""


class Peer:
    """Call `start` once, then `stop` in any case."""

    def __init__(self, name: str, workers: int, make_setting: MakeSetting, path: str = "/") -> None:
        """RecipeError: it cannot run this program."""
        self.name = name
        self.address = ""
        self._workers = workers
        self._make_setting = make_setting
        self._path = path
        self._recipe: Recipe | None = None
        self._folder = ""
        self._access_log = False
        self._keeper: asyncio.subprocess.Process | None = None
        self._pids: dict[str, list[int]] = {}
        # Ports and a directory as a reader would choose them: it is found out now if it can run.
        example = make_setting("/run/peer", tuple(range(8000, 8001 + workers)))
        self.setup = catalog.text(catalog.recipe(name, example))

    async def start(self) -> None:
        """Return when it answers. SubjectError, OSError."""
        self._folder = tempfile.mkdtemp(prefix="penstock-peer-")
        setting = self._make_setting(self._folder, _free_ports(self._workers + 1))
        self._access_log = setting.access_log
        recipe = self._recipe = catalog.recipe(self.name, setting)
        self._write_files(recipe)
        self._keeper = await asyncio.create_subprocess_exec(
            *_ARGV, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=inherited_environment(), start_new_session=True,
        )  # fmt: skip
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(self._order(recipe)).encode() + b"\n")
        started = await self._message()
        for process, pid in zip(recipe.processes, started["pids"], strict=True):
            self._pids.setdefault(process.role, []).append(pid)
        try:
            async with asyncio.timeout(_START_S):
                await self._wait_until_ready(recipe)
        except TimeoutError:
            raise SubjectError(f"not ready in time{self._last_line()}") from None
        self.address = recipe.address

    async def stop(self) -> None:
        """Return when no process of it is left."""
        if self._keeper is None:
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            async with asyncio.timeout(3 * STOP_S):
                await self._keeper.wait()
        finally:
            if self._keeper.returncode is None:
                self._keeper.kill()
                await self._keeper.wait()
            # A keeper that was killed has left it.
            shutil.rmtree(self._folder, ignore_errors=True)

    def signal(self, number: signal.Signals) -> None:
        """Signal its keeper. No effect if it has ended."""
        if self._keeper is not None and self._keeper.returncode is None:
            with suppress(ProcessLookupError):
                self._keeper.send_signal(number)

    async def roles(self) -> Roles:
        """SubjectError: one of its processes has ended."""
        await self._check()
        return {
            role: tuple(sorted({one for pid in pids for one in resource_usage.tree(pid)}))
            for role, pids in self._pids.items()
        }

    async def split(self) -> tuple[str, dict[str, int]]:
        """Not known."""
        return "connections", {}

    async def outgoing_connections(self, roles: Roles) -> int:
        port = parse_address(self.address).port
        return await asyncio.to_thread(
            resource_usage.outgoing_connections, roles.get("proxy", ()), port
        )

    def _write_files(self, recipe: Recipe) -> None:
        for name, content in recipe.files.items():
            Path(self._folder, name).write_text(content)
        script = resources.files("penstock_supervisor.compare.peers").joinpath(CLUSTER_SCRIPT)
        Path(self._folder, CLUSTER_SCRIPT).write_text(script.read_text("utf-8"))

    def _order(self, recipe: Recipe) -> Mapping[str, Any]:
        environment = inherited_environment()
        return {
            "folder": self._folder,
            "processes": [
                {
                    "argv": [_interpreted(one.argv[0]), *one.argv[1:]],
                    "directory": one.directory,
                    "env": {**environment, **one.env},
                    # Lines of an access log cost what it takes to make them, for all alike.
                    "stdout": os.devnull if self._access_log else f"{self._folder}/{one.role}.log",
                    "stderr": f"{self._folder}/{one.role}.log",
                }
                for one in recipe.processes
            ],
        }

    async def _message(self) -> dict[str, Any]:
        """The next line of the keeper. SubjectError: it is a failure, or the keeper has ended."""
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        line = await self._keeper.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"failed": "its keeper ended"}
        if "failed" in message:
            raise SubjectError(message["failed"])
        return message

    async def _check(self) -> None:
        """SubjectError: one of its processes has ended, and so its keeper has."""
        if self._keeper is not None and self._keeper.returncode is not None:
            await self._message()

    async def _wait_until_ready(self, recipe: Recipe) -> None:
        answers = 0
        while answers < _ANSWERS_FOR_EACH_WORKER * self._workers:
            await self._check()
            if await _answers(recipe.address, self._path):
                answers += 1
            else:
                answers = 0
                await asyncio.sleep(_POLL_S)

    def _last_line(self) -> str:
        for role in ("workers", "proxy"):
            if line := last_line(Path(self._folder, f"{role}.log")):
                return f": {line}"
        return ""


def _interpreted(program: str) -> str:
    """The interpreter that runs us, or a program that a user's PATH need not have."""
    if program == PYTHON:
        return sys.executable
    return shutil.which(program) or shutil.which(program, path=SBIN) or program


async def _answers(address: str, path: str) -> bool:
    """Does it answer a request on a new connection with success?"""
    parsed = parse_address(address)
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_REQUEST_S):
            reader, writer = await asyncio.open_connection(parsed.host, parsed.port)
            try:
                writer.write(head.encode())
                status = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return len(status) > 1 and status[1][:1] in (b"2", b"3")


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on now. Somebody else could take one before the peer does."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
        return tuple(ports)
