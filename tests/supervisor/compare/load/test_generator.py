"""The load generator sends the right requests, counts every error by kind, and leaves nothing.

Covers `compare/load/clients` and `compare/load/driver`.
Covers `compare/load/job` and `compare/load/response`.
"""

import asyncio
import errno
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock_supervisor.compare.load import clients, connector
from penstock_supervisor.compare.load.driver import HeldConnections, Job, LoadReport, drive
from penstock_supervisor.compare.load.generator import Load
from penstock_supervisor.compare.load.job import merge, split
from penstock_supervisor.compare.report import histogram

WAIT_S = 60.0
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
CUT = GOOD[:-1]


class Server:
    """Answers every request with what `answer` gives for its number, and records the requests."""

    def __init__(self, answer: Callable[[int], Awaitable[bytes]]) -> None:
        self._answer = answer
        self.address = ""
        self.requests: list[bytes] = []
        self.peers: list[str] = []
        self.open = 0
        self.asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(str(writer.get_extra_info("peername")))
        self.open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                    self.asked.set()
                    answer = await self._answer(len(self.requests))
                    if answer == b"reset":
                        writer.transport.abort()
                        return
                    for piece in answer.split(b"|"):
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    if answer in (ENDLESS, CLOSING, CUT) or answer.startswith(b"HTTP/1.1 100 then"):
                        return
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(answer: bytes | Callable[[int], Awaitable[bytes]], path: str = "",
                  host: str = "127.0.0.1") -> AsyncIterator[Server]:  # fmt: skip
    async def same(_: int) -> bytes:
        assert isinstance(answer, bytes)
        return answer

    server = Server(same if isinstance(answer, bytes) else answer)
    if path:
        listener = await asyncio.start_unix_server(server, path)
        server.address = f"unix:{path}"
    else:
        listener = await asyncio.start_server(server, host, 0)
        port = listener.sockets[0].getsockname()[1]
        server.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        yield server
    finally:
        listener.close()


def job(address: str, kind: str = "keepalive", **more: Any) -> Job:
    return Job.model_validate(
        {"address": address, "kind": kind, "connections": 4, "seconds": 0.3} | more
    )


async def driven(one: Job, processes: int = 1) -> LoadReport:
    async with asyncio.timeout(WAIT_S):
        return await drive(one, processes)


async def test_keepalive_connections_are_reused_and_every_response_is_counted() -> None:
    async with serving(GOOD) as server:
        report = await driven(job(server.address, path="/x?y", host="example.org"))
    assert report.errors == {}
    assert report.requests == len(server.requests) > 4
    assert sum(report.histogram.values()) == report.requests
    assert histogram.percentile(report.histogram, 1) >= report.worst_s > 0
    assert len(server.peers) == 4
    assert set(server.requests) == {b"GET /x?y HTTP/1.1\r\nHost: example.org\r\n\r\n"}


async def test_a_connection_per_request_is_new_and_announces_its_close() -> None:
    async with serving(CLOSING) as server:
        report = await driven(job(server.address, "connect"))
    assert report.errors == {}
    assert report.requests == len(server.requests) == len(server.peers) > 4
    assert all(b"\r\nConnection: close\r\n" in request for request in server.requests)


@pytest.mark.parametrize("answer", [GOOD, CLOSING, ENDLESS])
async def test_a_connection_per_request_is_new_whatever_the_server_wants(answer: bytes) -> None:
    async with serving(answer) as server:
        report = await driven(job(server.address, "connect"))
    assert report.errors == {}
    assert report.requests == len(server.requests) == len(server.peers) > 4


@pytest.mark.parametrize("kind", ["keepalive", "connect"])
async def test_a_known_response_that_is_cut_is_an_error_each_time(kind: str) -> None:
    async def answer(number: int) -> bytes:
        return GOOD if number % 3 else CUT

    async with serving(answer) as server:
        report = await driven(job(server.address, kind))
    assert report.errors == {"reset": len(server.requests) // 3}
    assert report.requests + report.errors["reset"] == len(server.requests) > 6


@pytest.mark.parametrize("kind", ["keepalive", "connect"])
async def test_responses_that_all_differ_are_read_as_well(kind: str) -> None:
    async def answer(number: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\nok" % number

    async with serving(answer) as server:
        report = await driven(job(server.address, kind))
    assert report.errors == {}
    assert report.requests == len(server.requests) > 4


@pytest.mark.parametrize(("kind", "late"), [("keepalive", 4), ("connect", 4), ("rate", 0)])
async def test_late_responses_have_latencies_and_are_no_throughput_of_a_closed_loop(
    kind: str, late: int
) -> None:
    loop = asyncio.get_running_loop()
    first: list[float] = []

    async def answer(_: int) -> bytes:
        first.append(loop.time())
        await asyncio.sleep(first[0] + 0.5 - loop.time())  # longer than the load
        return GOOD

    async with serving(answer) as server:
        report = await driven(job(server.address, kind, rate=1000.0))
    assert report.errors == {}
    assert report.requests == sum(report.histogram.values()) == len(server.requests) == 4
    assert report.late == late
    assert report.requests_per_s * report.seconds == pytest.approx(4 - late)


async def test_a_constant_rate_is_kept_by_a_server_that_keeps_up() -> None:
    async with serving(GOOD) as server:
        report = await driven(job(server.address, "rate", rate=200.0, seconds=1.0))
    assert report.errors == {}
    assert report.requests == len(server.requests) <= 201
    assert report.requests > 100


async def test_a_stall_counts_for_every_request_that_was_due_during_it() -> None:
    async def answer(number: int) -> bytes:
        if number == 20:
            await asyncio.sleep(0.5)  # the stall itself
        return GOOD

    async with serving(answer) as server:
        report = await driven(job(server.address, "rate", rate=200.0, seconds=1.5, connections=1))
    # A client that waits for each response would have measured one slow response.
    late = sum(n for bucket, n in report.histogram.items() if histogram.upper(bucket) > 0.1)
    assert late >= 60
    assert report.worst_s >= 0.5


@pytest.mark.parametrize("kind", ["keepalive", "connect"])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Enc|oding: chunked\r\n\r\n2\r|\nok\r\n0|\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
        b"HTTP/1.1 103 Hints\r\nX: y\r|\n\r\n|HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na|bc",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300000,
        ENDLESS,
        CLOSING,
    ],
)
async def test_every_kind_of_response_is_read_to_its_end(answer: bytes, kind: str) -> None:
    async with serving(answer) as server:
        report = await driven(job(server.address, kind))
    assert report.errors == {}
    assert report.requests == len(server.requests) > 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"reset", "reset"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "status"),
        (b"HTTP/1.1 404 None\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "status"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\n", "protocol"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n", "protocol"),
    ],
)
@pytest.mark.parametrize("kind", ["keepalive", "connect", "rate"])
async def test_a_bad_response_is_an_error_of_its_kind(answer: bytes, error: str, kind: str) -> None:
    async with serving(answer) as server:
        report = await driven(job(server.address, kind, rate=100.0))
    assert set(report.errors) == {error}
    assert report.errors[error] == len(server.requests) > 0
    assert report.requests == 0
    assert report.histogram == {}


@pytest.mark.parametrize("early", [b"HTTP/1.1 408 Late\r\n\r\n", b""])
async def test_a_server_that_speaks_or_leaves_before_it_is_asked_is_an_error_at_once(
    early: bytes,
) -> None:
    connected = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        with suppress(OSError):
            writer.write(early)
            writer.write_eof()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        report = await driven(job(f"127.0.0.1:{port}", "connect"))
    assert report.requests == 0
    assert set(report.errors) == {"status" if early else "reset"}
    assert sum(report.errors.values()) == connected > 4


@pytest.mark.parametrize("kind", ["keepalive", "connect", "rate"])
async def test_a_missing_unix_socket_is_a_connect_error(tmp_path: Path, kind: str) -> None:
    report = await driven(job(f"unix:{tmp_path}/nobody", kind, rate=100.0))
    assert set(report.errors) == {"connect"}


def test_a_shortage_of_local_ports_is_reported_apart_from_a_refused_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: connector.Connector) -> socket.SocketType:
        raise OSError(errno.EADDRNOTAVAIL, "not connected")

    monkeypatch.setattr(connector.Connector, "connect", none_left)
    load = Load(job("127.0.0.1:1", "connect"), clients.Poller())
    assert set(load.run().errors) == {"no port"}


async def test_a_refused_port_is_a_connect_error() -> None:
    async with serving(GOOD) as server:
        pass
    report = await driven(job(server.address))
    assert set(report.errors) == {"connect"}


async def test_a_response_that_does_not_come_in_time_is_a_timeout() -> None:
    release = asyncio.Event()

    async def answer(_: int) -> bytes:
        await release.wait()
        return GOOD

    async with serving(answer) as server:
        report = await driven(job(server.address))
        release.set()
    assert report.errors == {"timeout": 4}


async def test_a_connection_that_was_closed_while_idle_is_reopened_without_an_error() -> None:
    # A keep-alive response, then a close: at a low rate no request is outstanding at that time.
    idle_closed = b"HTTP/1.1 100 then\r\n\r\n" + GOOD
    async with serving(idle_closed) as server:
        report = await driven(job(server.address, "rate", rate=20.0, connections=8, seconds=1.0))
    assert report.errors == {}
    assert report.requests == len(server.requests) > 8
    assert len(server.peers) > 8


async def test_unix_sockets_and_ipv6_are_reached(tmp_path: Path) -> None:
    async with serving(GOOD, path=f"{tmp_path}/s") as server:
        assert (await driven(job(server.address))).errors == {}
    async with serving(GOOD, host="::1") as server:
        report = await driven(job(server.address, "connect"))
    assert report.errors == {}
    assert report.requests > 0


async def test_many_connections_to_loopback_come_from_several_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connector, "_CONNECTIONS_PER_SOURCE", 2)
    async with serving(GOOD) as server, HeldConnections(server.address) as held:
        assert await held.grow(6) == 6
    hosts = {peer.split("'")[1] for peer in server.peers}
    assert hosts == {"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}


async def test_processes_share_a_job_and_their_figures_are_added() -> None:
    async with serving(GOOD) as server:
        report = await driven(job(server.address, connections=3), 2)
    assert report.errors == {}
    assert report.requests == len(server.requests)
    assert len(server.peers) == 3


def test_the_parts_of_a_split_job_add_up_to_the_job() -> None:
    parts = split(job("x:1", "rate", connections=5, rate=90.0), 3)
    assert [part.connections for part in parts] == [2, 2, 1]
    assert sum(part.rate for part in parts) == 90.0
    assert len(split(job("x:1", connections=2), 8)) == 2


def test_merged_reports_are_limited_if_one_of_them_was() -> None:
    one = LoadReport(requests=1, errors={"reset": 1}, seconds=1.0, histogram={3: 1}, worst_s=0.5,
                 cpu_share=0.2, limited=False, late=1)  # fmt: skip
    other = one.model_copy(update={"cpu_share": 0.95, "limited": True, "worst_s": 0.1})
    both = merge([one, other])
    assert both == LoadReport(requests=2, errors={"reset": 2}, seconds=1.0, histogram={3: 2},
                          worst_s=0.5, cpu_share=0.95, limited=True, late=2)  # fmt: skip


def test_the_cpu_time_of_a_generator_is_that_of_the_requests_in_its_time() -> None:
    one = LoadReport(requests=1010, late=10, errors={}, seconds=2.0, histogram={}, worst_s=0.1,
                     cpu_share=0.5, limited=False)  # fmt: skip
    assert one.requests_per_s == 500
    assert one.cpu_us == pytest.approx(1000)
    assert one.model_copy(update={"requests": 10}).cpu_us == 0


async def test_an_unknown_host_name_is_one_clear_error() -> None:
    with pytest.raises(OSError, match="the load generator: "):
        await driven(job("nobody.invalid:1"))


async def test_a_cancelled_load_leaves_no_process() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with serving(GOOD) as server, asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(drive(job(server.address, seconds=600.0), 2))
        await server.asked.wait()
        task.cancel()
    assert set(psutil.Process().children(recursive=True)) == before


async def test_a_generator_exits_when_its_standard_input_is_closed() -> None:
    async with serving(GOOD) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock_supervisor.compare.load.generator",
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(job(server.address, seconds=600.0).model_dump_json().encode() + b"\n")
        async with asyncio.timeout(WAIT_S):
            await server.asked.wait()
            process.stdin.close()
            assert await process.wait() == 1


async def test_held_connections_send_one_request_and_stay_open() -> None:
    async with serving(GOOD) as server:
        async with HeldConnections(server.address, "/x") as held:
            assert await held.grow(100) == 100
            assert await held.grow(50) == 150
            assert await held.grow(0) == 150
            assert server.open == len(server.requests) == 150
        assert server.requests[0].startswith(b"GET /x HTTP/1.1\r\n")


async def test_a_held_connection_that_was_closed_is_not_counted() -> None:
    async def answer(number: int) -> bytes:
        return b"reset" if number % 2 else GOOD

    async with serving(answer) as server, HeldConnections(server.address) as held:
        assert await held.grow(10) == 5


async def test_holding_connections_raises_the_descriptor_limit_to_its_maximum() -> None:
    with lowered_limit():
        async with serving(GOOD) as server, HeldConnections(server.address):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            assert soft == hard


@contextmanager
def lowered_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
