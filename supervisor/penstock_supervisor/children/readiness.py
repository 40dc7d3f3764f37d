"""Is the worker there? A connect that succeeds is a yes; everything else is "not yet".

For programs that have no channel to say it themselves. One that was given a listening socket
cannot be asked like that, because whoever shares it may answer: it is there when it waits for
what comes over that socket, which the kernel shows of its descriptors and system calls.

It does not know what a deadline is: whoever asks stops asking. When a deadline did pass,
`where_it_listens` looks at what the process really opened, because a wrong port is the usual
reason, and its number is the whole answer.
"""

import asyncio
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from penstock_proxy.net.address import Address
from penstock_supervisor.kernel.procfs import as_owner_of

_FIRST_S: Final = 0.05
_LONGEST_S: Final = 0.5
_GROWTH: Final = 1.5
_CONNECT_S: Final = 2.0
"""A listener whose queue is full lets a connect wait; try again rather than for ever."""
_X86: Final = platform.machine() in ("x86_64", "AMD64")
_ACCEPTS: Final = {43, 288, 45, 47, 299} if _X86 else {202, 242, 207, 212, 243}
"""accept, accept4, recvfrom, recvmsg, recvmmsg; the other numbers are those of arm64."""
_POLLS: Final = {7, 23, 270, 271} if _X86 else {72, 73}
"""poll, select, pselect6, ppoll."""


def waits() -> Iterator[float]:
    """Seconds between two tries: short while a quick program starts, then rarer."""
    wait = _FIRST_S
    while True:
        yield wait
        wait = min(wait * _GROWTH, _LONGEST_S)


async def until_it_answers(address: Address) -> None:
    """Return once something accepts a connection there. Cancel to stop asking."""
    for wait in waits():
        if await _answers(address):
            return
        await asyncio.sleep(wait)


async def _answers(address: Address) -> bool:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.sock_connect(sock, (address.host, address.port))
            # With a port from the ephemeral range the kernel can connect a socket to
            # itself: it draws that very port as our own.
            return bool(sock.getsockname() != sock.getpeername())
        except (OSError, TimeoutError):
            return False


async def until_it_takes(pid: int, inode: int) -> None:
    """Return once the process, or one below it, waits for the socket of that inode."""
    for wait in waits():
        # In a thread: /proc of a program with many descriptors takes a while.
        if await asyncio.to_thread(takes, pid, inode):
            return
        await asyncio.sleep(wait)


def takes(pid: int, inode: int) -> bool:
    """Does the process, or one below it, wait for the socket of that inode?"""
    return any(_takes(process.pid, inode, pid) for process in _tree(pid))


def _takes(pid: int, inode: int, root: int) -> bool:
    """By epoll, which names what it watches; by a call that names its descriptor; or by one
    that does not (poll, select), and then it must not have a listener of its own to wait for.
    """
    process = Path(f"/proc/{pid}")
    with suppress(OSError), as_owner_of(pid):
        held = _held(process, inode)
        if not held:
            return False
        if any(number in held for number in _watched(process)):
            return True
        for call, first in _calls(process):
            if call in _ACCEPTS and first in held:
                return True
            if call in _POLLS and not where_it_listens(root, inode):
                return True
    return False


def _held(process: Path, inode: int) -> set[int]:
    """The numbers under which it has the socket."""
    name, found = f"socket:[{inode}]", set()
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()) == name:
                found.add(int(link.name))
    return found


def _watched(process: Path) -> Iterator[int]:
    """What its epoll descriptors watch."""
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            if "[eventpoll]" in str(link.readlink()):
                info = (process / "fdinfo" / link.name).read_text()
                yield from (int(number) for number in re.findall(r"(?m)^tfd:\s*(\d+)", info))


def _calls(process: Path) -> Iterator[tuple[int, int]]:
    """The system call that each thread is in, and its first argument."""
    for task in (process / "task").iterdir():
        with suppress(OSError):
            words = (task / "syscall").read_text().split()
            if len(words) > 1 and words[0].isdigit():
                yield int(words[0]), int(words[1], 16)


def where_it_listens(pid: int, *but: int) -> tuple[str, ...]:
    """Addresses that the process and all below it listen on, as far as we may look.

    `but` are inodes of sockets that do not count: it was given them.
    """
    found: set[str] = set()
    for process in _tree(pid):
        with suppress(psutil.Error, OSError), as_owner_of(process.pid):
            given = {fd for inode in but for fd in _held(Path(f"/proc/{process.pid}"), inode)}
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and connection.fd not in given:
                    found.add(str(Address(connection.laddr.ip, connection.laddr.port)))
    return tuple(sorted(found))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
