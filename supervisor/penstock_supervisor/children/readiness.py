"""Finds out whether a worker is ready that cannot report it over a channel.

A worker with a port of its own is ready when a connect to it succeeds. A worker that inherited a
listening socket cannot be tested like that, because another worker with the same socket may
accept. It is ready when it waits for that socket, which /proc shows by its descriptors and
system calls.

Deadlines are not known here: the caller cancels. After a deadline `listening_addresses` shows
where the process really listens, because a wrong port is the usual reason.
"""

import asyncio
import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from penstock_proxy.net.address import Address
from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.listening_processes import has_one, processes_with
from penstock_supervisor.kernel.procfs import as_owner_of

_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 0.5
_DELAY_FACTOR: Final = 1.5
_CONNECT_TIMEOUT_S: Final = 2.0
"""A connect waits as long as the listener's queue is full. Then a new try is better."""
_X86: Final = platform.machine() in ("x86_64", "AMD64")
_ACCEPT_CALLS: Final = {43, 288, 45, 47, 299} if _X86 else {202, 242, 207, 212, 243}
"""accept, accept4, recvfrom, recvmsg, recvmmsg; the other numbers are those of arm64."""
_POLL_CALLS: Final = {7, 23, 270, 271} if _X86 else {72, 73}
"""poll, select, pselect6, ppoll."""


def retry_delays() -> Iterator[float]:
    """Seconds between two tries: short at first, for programs that start quickly, then longer."""
    delay_s = _FIRST_DELAY_S
    while True:
        yield delay_s
        delay_s = min(delay_s * _DELAY_FACTOR, _MAX_DELAY_S)


async def until_it_accepts(address: Address, pid: int | None = None) -> None:
    """Return as soon as something accepts a connection at the address. Cancel to give up.

    If a `pid` is given, another process that listens there, and is certain not to be meant, does
    not count. (At the path of a unix socket there is none: the directory is our own, and the path
    was free when the process was started.)
    """
    for delay_s in retry_delays():
        if await _accepts(address) and not (
            pid is not None and await asyncio.to_thread(is_held_by_other, address, pid)
        ):
            return
        await asyncio.sleep(delay_s)


def is_held_by_other(address: Address, pid: int) -> bool:
    """Does a process listen on the port that has nothing to do with this one?

    False if that cannot be seen. The process itself need not listen: a process that it started may,
    or one that another program has started for it, as Docker does. But a process that is older
    has had the port before.
    """
    if address.path:
        return False
    inodes = sock_diag.listeners(address.port)
    # The usual case first, because the tree of processes takes a while to read.
    if has_one(pid, inodes) or any(has_one(one.pid, inodes) for one in _process_tree(pid)):
        return False
    try:
        started_at = psutil.Process(pid).create_time()
        holders = processes_with(inodes)
        return bool(holders) and all(_is_older(holder, started_at, pid) for holder in holders)
    except (psutil.Error, OSError):
        return False


def _is_older(holder: int, started_at: float, pid: int) -> bool:
    return os.getsid(holder) != pid and psutil.Process(holder).create_time() < started_at


async def _accepts(address: Address) -> bool:
    if address.path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            # At once: it is connected, refused, or the queue is full.
            return sock.connect_ex(address.path) == 0
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, (address.host, address.port))
            # With a port of the ephemeral range the kernel may choose the same port for our
            # side, and so connect the socket to itself.
            return bool(sock.getsockname() != sock.getpeername())
        except (OSError, TimeoutError):
            return False


async def until_it_waits_for_socket(pid: int, inode: int) -> None:
    """Return as soon as the process, or a descendant, waits for the socket with this inode."""
    for delay_s in retry_delays():
        # In a thread, because reading /proc of a program with many descriptors takes a while.
        if await asyncio.to_thread(waits_for_socket, pid, inode):
            return
        await asyncio.sleep(delay_s)


def waits_for_socket(pid: int, inode: int) -> bool:
    """Does the process, or a descendant, wait for the socket with this inode?"""
    return any(_process_waits(process.pid, inode, pid) for process in _process_tree(pid))


def _process_waits(pid: int, inode: int, root: int) -> bool:
    """Does one process wait? Either the socket is in an epoll of it, or a thread is in an accept
    call on it, or in poll or select. /proc does not show the descriptors of the latter two, so
    they only count if the process tree has no other listener to wait for."""
    process = Path(f"/proc/{pid}")
    with suppress(OSError), as_owner_of(pid):
        fds = _fds_of_socket(process, inode)
        if not fds:
            return False
        if any(number in fds for number in _fds_in_epolls(process)):
            return True
        for call, argument in _system_calls(process):
            if call in _ACCEPT_CALLS and argument in fds:
                return True
            if call in _POLL_CALLS and not listening_addresses(root, inode):
                return True
    return False


def _fds_of_socket(process: Path, inode: int) -> set[int]:
    """The process' descriptors of the socket."""
    name, fds = f"socket:[{inode}]", set()
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()) == name:
                fds.add(int(link.name))
    return fds


def _fds_in_epolls(process: Path) -> Iterator[int]:
    """The descriptors that its epolls watch."""
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            if "[eventpoll]" in str(link.readlink()):
                info = (process / "fdinfo" / link.name).read_text()
                yield from (int(number) for number in re.findall(r"(?m)^tfd:\s*(\d+)", info))


def _system_calls(process: Path) -> Iterator[tuple[int, int]]:
    """The system call that each thread is in, and its first argument."""
    for task in (process / "task").iterdir():
        with suppress(OSError):
            words = (task / "syscall").read_text().split()
            if len(words) > 1 and words[0].isdigit():
                yield int(words[0]), int(words[1], 16)


def listening_addresses(pid: int, *ignored_inodes: int) -> tuple[str, ...]:
    """Addresses that the process and its descendants listen on, if we may read them.

    `ignored_inodes` are those of inherited sockets, which do not count.
    """
    addresses: set[str] = set()
    for process in _process_tree(pid):
        with suppress(psutil.Error, OSError), as_owner_of(process.pid):
            ignored_fds = {
                fd
                for inode in ignored_inodes
                for fd in _fds_of_socket(Path(f"/proc/{process.pid}"), inode)
            }
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and connection.fd not in ignored_fds:
                    addresses.add(str(Address(connection.laddr.ip, connection.laddr.port)))
    return tuple(sorted(addresses))


def _process_tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
