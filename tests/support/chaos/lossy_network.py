"""A lossy network: loses, delays, doubles and reorders packets between two network namespaces.

    python -m tests.support.chaos.lossy_network SEED

Owns two namespaces of its own, with a TUN device in each, and every packet that goes from
one to the other. Nothing of the host's network is touched, and all of it ends with this
process. It reads `bad`, `down` or `good` from its standard input, and ends when that ends. On
its standard output it first writes which of its descriptors is the servers' namespace (it is
itself in the clients'), and at the end what it did.

Why not `tc netem`: few kernels of virtual machines have it, and its random numbers have no seed.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

SERVERS: Final = "10.99.0.1"
CLIENTS: Final = "10.99.0.2"
_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_TUN_NO_PI: Final = 0x1001
_MTU: Final = 1500
_MOST: Final = 20_000
"""Packets on their way; what comes beyond is lost, as in any queue."""
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class LinkState:
    loss: float
    doubled: float
    delay_s: float
    jitter_s: float


LINK_STATES: Final = {
    "good": LinkState(0.0, 0.0, 0.0, 0.0),
    "bad": LinkState(0.02, 0.01, 0.002, 0.02),
    "down": LinkState(1.0, 0.0, 0.0, 0.0),
}


def move_to(namespace: int) -> None:
    """Take this thread to another network namespace; what it starts then is there, too."""
    if LIBC.setns(namespace, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _own_namespace(address: str, peer: str) -> int:
    """A new namespace with one end of the wire in it; the descriptor of that end."""
    if LIBC.unshare(_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wire", _TUN_NO_PI))
    for words in (
        "link set lo up",
        f"addr add {address} peer {peer} dev wire",
        f"link set wire mtu {_MTU} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return tun


class Wire:
    """Both directions."""

    def __init__(self, ends: tuple[int, int], dice: random.Random) -> None:
        self.state = LINK_STATES["good"]
        self.did: Counter[str] = Counter()
        self._other = dict((ends, ends[::-1]))
        self._dice = dice
        self._on_way: list[tuple[float, int, int, bytes]] = []
        self._number = 0

    def carry(self, end: int, now: float) -> None:
        """Take what came in at one end."""
        for _ in range(64):
            try:
                packet = os.read(end, 1 << 16)
            except BlockingIOError:
                return
            state, dice = self.state, self._dice
            if dice.random() < state.loss or len(self._on_way) > _MOST:
                self.did["packets lost"] += 1
                continue
            copies = 1 + (dice.random() < state.doubled)
            self.did["packets doubled"] += copies - 1
            for _ in range(copies):
                self._number += 1
                due = now + state.delay_s + dice.random() * state.jitter_s
                heapq.heappush(self._on_way, (due, self._number, self._other[end], packet))

    def deliver(self, now: float) -> None:
        """Give out what is due."""
        while self._on_way and self._on_way[0][0] <= now:
            _, _, end, packet = heapq.heappop(self._on_way)
            try:
                os.write(end, packet)
            except OSError:
                # Its queue is full: that is a loss as well.
                self.did["packets lost"] += 1

    def time_limit(self, now: float) -> float | None:
        return max(0.0, self._on_way[0][0] - now) if self._on_way else None


def main(seed: str) -> None:
    first = _own_namespace(SERVERS, CLIENTS)
    servers = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ends = first, _own_namespace(CLIENTS, SERVERS)
    wire = Wire(ends, random.Random(seed))
    sys.stdout.write(f"{servers}\n")
    sys.stdout.flush()
    commands = sys.stdin.fileno()
    while True:
        wait = wire.time_limit(time.monotonic())
        ready, _, _ = select.select((*ends, commands), (), (), wait)
        now = time.monotonic()
        if commands in ready:
            words = os.read(commands, 100).decode().split()
            if not words:
                break
            wire.state = LINK_STATES[words[-1]]
        for end in ends:
            if end in ready:
                wire.carry(end, now)
        wire.deliver(now)
    sys.stdout.write(repr(dict(wire.did)))


if __name__ == "__main__":
    main(*sys.argv[1:])
