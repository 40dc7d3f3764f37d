"""Large bodies and many connections are served, and the proxy is afterwards as it was before."""

import asyncio
import resource
import socket
import threading
import zlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.live.conftest import Peak, Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

MIB = 1 << 20
HELD = 2000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def many_descriptors() -> "Iterator[None]":
    """The client's end of every connection is ours, and more than most shells allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * HELD
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", ["web", "raw"])
def test_a_gibibyte_up_and_down_takes_no_memory(demo: "Cluster", peak: "Peak", name: str) -> None:
    size, piece = 1024 * MIB, bytes(range(256)) * 4096
    growth = peak(demo.proxy.pid)
    wire = demo.connect(name)
    sent = [0]

    def send() -> None:
        wire.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            wire.send(piece)
            sent[0] = zlib.crc32(piece, sent[0])

    sender = threading.Thread(target=send)
    sender.start()
    assert b"Content-Length: %d\r\n" % size in wire.head()
    assert checksum(wire, size) == (size, sent[0])
    sender.join()
    assert growth() < 64 * MIB


def checksum(wire: "Wire", size: int) -> tuple[int, int]:
    """Read that much without keeping it."""
    sum_, got = 0, 0
    while got < size:
        data = wire.some()
        sum_, got = zlib.crc32(data, sum_), got + len(data)
    return got, sum_


def test_a_client_that_does_not_read_fills_only_the_buffers_of_the_kernel(
    demo: "Cluster", peak: "Peak"
) -> None:
    growth = peak(demo.proxy.pid)
    wires = [demo.connect(name) for name in ("web", "raw") for _ in range(4)]
    for wire in wires:
        wire.send(b"GET /bytes?n=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (64 * MIB))
    seen = -1.0
    while (now := demo.metric("penstock_bytes_total", direction="sent")) != seen:
        seen = now
    assert growth() < 16 * MIB
    for wire in wires:
        wire.head()
        wire.exactly(64 * MIB)


def test_an_upload_is_slowed_down_to_its_worker_and_the_proxy_buffers_little(
    penstock: "Penstock", origin: "Worker", peak: "Peak"
) -> None:
    size, read_on = 64 * MIB, threading.Event()

    def answer(wire: "Wire") -> None:
        wire.head()
        assert read_on.wait(60)
        wire.exactly(size)
        wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    run = penstock("--to", origin(answer).address)
    growth = peak(run.proxy.pid)
    wire = run.connect()
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    sender = threading.Thread(target=wire.send, args=(head, b"x" * size))
    sender.start()
    seen = -1.0
    while (now := run.metric("penstock_bytes_total", direction="received")) != seen:
        seen = now
    assert growth() < 8 * MIB
    read_on.set()
    assert wire.answer().status == 204
    sender.join()


def test_no_more_connections_than_allowed_and_the_next_one_waits(
    penstock: "Penstock", origin: "Worker"
) -> None:
    limits = {"connections_per_client": 2}
    run = penstock("--to", origin(good).address, max_connections=2, limits=limits)
    wires = [run.connect() for _ in range(3)]
    for wire in wires:
        wire.send(GET)
    assert [wire.answer().status for wire in wires[:2]] == [200, 200]
    assert run.metric("penstock_connections_active") == 2
    wires[0].close()
    assert wires[2].answer().status == 200


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_running_out_of_descriptors_counts_against_no_worker_and_ends(
    penstock: "Penstock", origin: "Worker", mode: str
) -> None:
    queue = "300ms" if mode == "http" else "60s"
    upstreams = [origin(good).address, origin(good).address]
    # All of ours come from one address.
    limits = {"connections_per_client": 1000}
    run = penstock(mode=mode, upstreams=upstreams, timeouts={"queue": queue}, limits=limits)
    # Fewer than were counted on, as when the whole system runs out.
    limit = run.proxy.num_fds() + 70
    resource.prlimit(run.proxy.pid, resource.RLIMIT_NOFILE, (limit, limit))
    wires = [run.connect() for _ in range(60)]
    for wire in wires:
        wire.send(GET)
    for wire in wires:
        # Under http those that are in hold what they would need to be served.
        assert wire.answer().status in ((200, 503) if mode == "http" else (200,))
        wire.close()
    run.until(lambda: run.connect().ask(GET).status == 200)
    assert run.metric("penstock_ejections_total") == 0


def good(wire: "Wire") -> None:
    while wire.head():
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("name", ["web", "raw"])
async def test_two_thousand_connections_are_held_at_once_and_all_answered(
    demo: "Cluster", name: str
) -> None:
    proxy = demo.proxy
    demo.get("/", name)
    before = proxy.num_fds()
    socks = [socket.socket() for _ in range(HELD)]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(open_and_ask(sock, demo.address(name)) for sock in socks))
            assert demo.metric("penstock_connections_active", service=name) == HELD
            assert demo.metric("penstock_fds", role="proxy", kind="client") == HELD
            # Each of them is alive, and not just not yet closed.
            await asyncio.gather(*map(ask, socks))
    finally:
        for sock in socks:
            sock.close()
    demo.until(lambda: demo.metric("penstock_connections_active", service=name) == 0)
    # Some connections to workers are kept for the next to come.
    kept = demo.metric("penstock_fds", role="proxy", kind="upstream") if name == "web" else 0
    assert proxy.num_fds() <= before + kept
    assert demo.get("/", name)[0] == 200


async def open_and_ask(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    await ask(sock)


async def ask(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, GET)
    data = b""
    while not data.endswith(b")\n"):
        more = await loop.sock_recv(sock, 4096)
        assert more, data
        data += more
    assert data.startswith(b"HTTP/1.1 200 ")
