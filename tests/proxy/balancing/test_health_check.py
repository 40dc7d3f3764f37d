"""Checks of real servers on loopback find each kind of failure, and only members are checked.

Covers `balancing/probes` and `balancing/address_check`.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest
from aiohttp import web
from tests.support.descriptors import next_descriptor, no_descriptor_left

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.health_check import (
    MAX_STARTING_CHECKS,
    STARTING_INTERVAL_S,
    HealthChecker,
)
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.config import Ejection, Health, Target
from penstock_proxy.metrics import CHECK_RESULTS, ServiceCounters

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HOUR = 3600.0
FAST = 0.005


async def until(condition: Callable[[], bool]) -> None:
    """Run the loop until the condition holds. Only a bug lets ten seconds pass."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 — a pool is plain values, it has no events
            await asyncio.sleep(0.001)


class CheckedPool:
    """A pool of joined workers at these addresses, its checker, and the changes of state."""

    def __init__(
        self,
        *addresses: str,
        path: str | None = "/healthz",
        interval: float = FAST,
        timeout: float = 5.0,
        joined: bool = True,
        clock: Callable[[], float] = monotonic,
        random: Callable[[], float] = lambda: 0.5,
        probe: probes.Probe | None = None,
    ) -> None:
        health = Health(path=path, interval=interval, timeout=timeout, rise=2, fall=2)
        self.changes: list[str] = []
        self.pool = Pool(
            [Target(member=n, slot=n, address=a, joined=joined) for n, a in enumerate(addresses)],
            balance="round_robin",
            health=health,
            ejection=Ejection(),
            random=random,
            on_change=lambda _, reason: self.changes.append(reason),
        )
        self.counters = ServiceCounters()
        self.answers: list[bool] = []
        self.checker = HealthChecker(
            self.pool,
            self.counters,
            clock=clock,
            random=random,
            probe=probe,
            on_answer=lambda _, answered: self.answers.append(answered),
        )
        if addresses:
            self.member: Member = self.pool.members[0]

    def add(self, slot: int, address: str) -> Member:
        member = self.pool.add(Target(member=slot, slot=slot, address=address, joined=True))
        self.checker.add(member)
        return member

    def use(self, health: Health) -> None:
        """All members are checked in this way from now on."""
        for member in self.pool.members:
            self.pool.set_health(member.number, health)
        self.checker.configure(None)

    def remove(self, slot: int) -> None:
        self.pool.remove(slot)
        self.checker.remove(slot)

    def count(self, result: str) -> int:
        assert {label for _, label in self.counters.checks} <= set(CHECK_RESULTS)
        return self.counters.checks[0, result]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.checker.run())
            yield
            task.cancel()


@asynccontextmanager
async def serving(handler: Handler, path: Path | None = None) -> AsyncIterator[str]:
    """An aiohttp server for /healthz; yields its address as in the configuration."""
    app = web.Application()
    app.router.add_get("/healthz", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    try:
        if path is not None:
            await web.UnixSite(runner, path).start()
            yield f"unix:{path}"
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        # A check that was cancelled may have been accepted in this turn, and nobody knows it yet.
        for _ in range(5):
            await asyncio.sleep(0)
        await runner.cleanup()


@asynccontextmanager
async def responding(answer: bytes) -> AsyncIterator[str]:
    """A server that sends these bytes to each client that has sent something, and closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def healthy(_request: web.Request) -> web.Response:
    return web.Response()


# Well, ill, well again


async def test_a_worker_is_in_the_rotation_after_its_first_good_check() -> None:
    async with serving(healthy) as address:
        checked = CheckedPool(address, interval=HOUR)
        assert checked.pool.pick("client") is None
        async with checked.running():
            await until(lambda: checked.pool.pick("client") is checked.member)
    assert checked.changes == ["passed its first check"]
    assert (checked.count("ok"), sum(checked.counters.check_seconds.counts)) == (1, 1)


async def test_a_worker_whose_health_path_fails_leaves_the_rotation_and_comes_back() -> None:
    status = 200

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving(answer) as address:
        checked = CheckedPool(address)
        async with checked.running():
            await until(lambda: checked.member.state is MemberState.UP)
            status = 503
            await until(lambda: checked.member.state is MemberState.DOWN)
            status = 204
            await until(lambda: checked.member.state is MemberState.UP)
    assert checked.changes == [
        "passed its first check",
        "failed 2 checks in a row: HTTP 503",
        "passed 2 checks in a row",
    ]


async def test_a_slow_worker_delays_no_other_check() -> None:
    asked = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(hang) as slow, serving(healthy) as quick:
        checked = CheckedPool(slow, quick)
        async with checked.running():
            await asked.wait()
            await until(lambda: checked.pool.in_rotation == 1)
            assert checked.member.state is MemberState.CHECKING


# What is asked, and what of the answer is read


async def test_a_check_has_its_own_user_agent_and_keeps_no_connection() -> None:
    heads: list[web.Request] = []

    async def note(request: web.Request) -> web.Response:
        heads.append(request)
        return web.Response()

    async with serving(note) as address:
        checked = CheckedPool(address)
        async with checked.running():
            await until(lambda: len(heads) >= 2)
    for head in heads:
        assert head.headers["Host"] == address
        assert head.headers["User-Agent"] == "penstock-health"
        assert head.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("name", "host"),
    [("app.internal:9000", "app.internal:9000"), ("app.internal:80", "app.internal")],
)
async def test_a_member_that_came_from_a_name_is_asked_for_by_it(name: str, host: str) -> None:
    hosts: list[str] = []

    async def note(request: web.Request) -> web.Response:
        hosts.append(request.headers["Host"])
        return web.Response()

    async with serving(note) as address:
        checked = CheckedPool(address, interval=HOUR)
        checked.member.name = name
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
    assert hosts == [host]


async def test_a_path_is_sent_as_it_was_configured() -> None:
    said: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append((await reader.readline()).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        checked = CheckedPool(f"127.0.0.1:{port}", path="/a%2fb?q=%41+c", interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
    assert said == ["GET /a%2fb?q=%41+c HTTP/1.1\r\n"]


async def test_a_redirect_is_good_and_is_not_followed() -> None:
    async def redirect(_request: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/")

    async with serving(redirect) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)


async def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(4096))

    async with serving(endless) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
LENGTH = b"Content-Length: 9\r\n\r\nhalf"
UNTIL_CLOSE = b"\r\nhalf"


@asynccontextmanager
async def half_answering(
    answer: bytes, end: str, path: Path | None
) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that sends this much to each client, and then ends the connection so, or waits for
    the client to do that. Yields its address, and one word for each connection that has ended."""
    ended: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        if end == "reset":
            # Closing with a lingering time of zero resets the connection.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif end == "close":
            writer.close()
        with suppress(OSError):
            await reader.read()
        writer.close()
        ended.append(end)

    if path is None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(talk, path)
        address = f"unix:{path}"
    async with server:
        yield address, ended


@pytest.mark.parametrize("end", ["never", "close", "reset"])
@pytest.mark.parametrize(
    "body", [CHUNKED, LENGTH, UNTIL_CLOSE], ids=["chunked", "length", "until close"]
)
@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize(("status", "result"), [(200, "ok"), (503, "failed")])
async def test_the_status_decides_whatever_becomes_of_the_body(
    body: bytes, end: str, where: str, status: int, result: str, tmp_path: Path
) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 %d X\r\n%b" % (status, body)
    path = None if where == "tcp" else tmp_path / "sock"
    async with half_answering(answer, end, path) as (address, ended):
        # Less than what is waited for the body: the time of the check is not that of its body.
        checked = CheckedPool(address, interval=HOUR, timeout=0.04)
        async with checked.running():
            async with asyncio.timeout(10):
                while not checked.count(result):
                    checked.checker.check_now(0)
                    await asyncio.sleep(0.001)
            await until(lambda: len(ended) > 0)
    assert checked.count({"ok": "failed", "failed": "ok"}[result]) == 0


@pytest.mark.parametrize(
    "answer",
    [b"", b"220 smtp.example ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"],
)
async def test_what_is_no_whole_head_is_a_bad_check(answer: bytes) -> None:
    async with responding(answer) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.count("failed") >= 1)
    assert checked.member.reason.startswith("no good check yet: no HTTP answer: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "HTTP 503"),
        (b"no database:\n\tconnection refused\n", "HTTP 503: no database: connection refused"),
        (
            b"\x1b[31mred\x00\xff\n2026-01-01 forged",
            "HTTP 503: \\x1b[31mred\\x00\ufffd 2026-01-01 forged",
        ),
        (b"x" * 5000, f"HTTP 503: {'x' * 200}…"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_the_first_words_of_a_bad_answer_are_told(
    body: bytes, said: str, chunked: bool, where: str, tmp_path: Path
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(body)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression()
        await response.prepare(request)
        if body:
            await response.write(body)
        await response.write_eof()
        return response

    async with serving(answer, None if where == "tcp" else tmp_path / "sock") as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.count("failed") >= 1)
    assert checked.member.reason == f"no good check yet: {said}"


@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_a_bad_answer_whose_body_does_not_come_is_a_bad_answer_and_no_silence(
    where: str, tmp_path: Path
) -> None:
    never = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        await response.write(b"it bro")
        await never.wait()
        return response

    async with serving(answer, None if where == "tcp" else tmp_path / "sock") as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.count("failed") >= 1)
        never.set()
    assert checked.member.reason == "no good check yet: HTTP 500: it bro"
    assert checked.count("timeout") == 0


# Nobody there, or not in time


async def test_only_a_check_that_nobody_answers_is_reported_and_the_first_answer_after_it() -> None:
    results = iter(["ok", "failed", "timeout", "refused", "failed", "ok"])

    async def probe(_: Member) -> probes.ProbeResult:
        if (outcome := next(results, "")) == "":
            await asyncio.Event().wait()
        return probes.HEALTHY if outcome == "ok" else probes.ProbeResult(outcome, "as told")

    checked = CheckedPool("127.0.0.1:1", probe=probe)
    async with checked.running():
        await until(lambda: checked.count("ok") == 2)
    # An error is an answer.
    assert checked.answers == [False, False, True]


async def test_silence_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The kernel accepts, and no one ever answers.
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        checked = CheckedPool(address, timeout=0.02)
        async with checked.running():
            await until(lambda: checked.count("timeout") >= 2)
    assert checked.member.reason == "no good check yet: no answer within 0.02 s"
    assert checked.member.state is MemberState.CHECKING


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_an_address_where_nothing_listens_is_refused(path: str | None) -> None:
    with socket.socket() as bound:
        # Bound, so that no other process can take the port, but not listening.
        bound.bind(("127.0.0.1", 0))
        checked = CheckedPool(f"127.0.0.1:{bound.getsockname()[1]}", path=path)
        async with checked.running():
            await until(lambda: checked.count("refused") >= 1)
    assert checked.member.reason == "no good check yet: connection refused"


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_a_unix_socket_that_does_not_exist_is_refused(
    path: str | None, tmp_path: Path
) -> None:
    checked = CheckedPool(f"unix:{tmp_path}/none.sock", path=path)
    async with checked.running():
        await until(lambda: checked.count("refused") >= 1)
    assert checked.member.reason == "no good check yet: its socket does not exist"


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_an_address_that_cannot_be_reached_is_a_bad_check(path: str | None) -> None:
    # TCP to a broadcast address: refused by our own kernel, whatever network there is.
    checked = CheckedPool("255.255.255.255:9", path=path)
    async with checked.running():
        await until(lambda: checked.count("failed") >= 1)


# Other ways to a worker


async def test_without_a_path_a_connect_is_the_check() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        checked = CheckedPool(f"127.0.0.1:{listener.getsockname()[1]}", path=None)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            listener.close()
            await until(lambda: checked.member.state is MemberState.DOWN)
    assert checked.changes[1] == "failed 2 checks in a row: connection refused"


async def test_a_unix_socket_is_connected_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "w.sock"))
        listener.listen()
        checked = CheckedPool(f"unix:{tmp_path}/w.sock", path=None, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)


async def test_a_unix_socket_is_asked_by_http_with_a_host(tmp_path: Path) -> None:
    hosts: list[str] = []

    async def note(request: web.Request) -> web.Response:
        hosts.append(request.headers["Host"])
        return web.Response()

    async with serving(note, tmp_path / "w.sock") as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
    assert hosts == ["localhost"]


# Coming and going


async def test_a_member_may_move_to_another_unix_socket(tmp_path: Path) -> None:
    async with serving(healthy, tmp_path / "new.sock"):
        checked = CheckedPool(f"unix:{tmp_path}/old.sock")
        async with checked.running():
            await until(lambda: checked.count("refused") >= 1)
            checked.pool.join(0, f"unix:{tmp_path}/new.sock")
            await until(lambda: checked.member.state is MemberState.UP)


async def test_a_member_is_not_checked_before_it_joins_and_then_at_once() -> None:
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(healthy)) for _ in range(2)]
        checked = CheckedPool(*addresses, interval=HOUR, joined=False)
        checked.checker.check_now(0)  # called before it runs, and for a member that has not joined
        async with checked.running():
            checked.pool.join(1)
            checked.checker.check_now(1)
            await until(lambda: checked.pool.in_rotation == 1)
            assert checked.count("ok") == 0

            # An hour is left of the pause; a member that joins again need not wait.
            checked.pool.leave(1)
            checked.checker.check_now(1)
            checked.pool.join(1)
            checked.checker.check_now(1)
            await until(lambda: checked.pool.in_rotation == 1)
    assert checked.counters.checks[1, "ok"] == 2


async def test_a_member_that_left_during_the_pause_is_checked_when_it_joins_again() -> None:
    async with serving(healthy) as address:
        checked = CheckedPool(address, address)
        checks = checked.counters.checks
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 2)
            checked.pool.leave(0)
            # Of a check that was under way nothing is counted.
            before, others = checks[0, "ok"], checks[1, "ok"]
            await until(lambda: checks[1, "ok"] > others + 10)
            assert checks[0, "ok"] == before
            checked.pool.join(0)
            checked.checker.check_now(0)
            await until(lambda: checked.pool.in_rotation == 2)


async def test_a_member_is_confirmed_by_a_check_that_begins_after_the_question() -> None:
    before, asked, answer_it = asyncio.Event(), asyncio.Event(), asyncio.Event()
    answers = [before, answer_it]

    async def answer(_request: web.Request) -> web.Response:
        asked.set()
        await answers.pop(0).wait()
        return web.Response()

    confirmed: list[str] = []
    async with serving(answer) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await asked.wait()
            checked.checker.confirm(0, lambda _: confirmed.append("first"))
            checked.checker.confirm(0, lambda _: confirmed.append("last"))
            asked.clear()
            before.set()
            await asked.wait()
            assert (confirmed, checked.count("ok")) == ([], 1), "an hour is left of the pause"
            answer_it.set()
            await until(lambda: bool(confirmed))
    assert (confirmed, checked.count("ok")) == (["last"], 2)


async def test_a_bad_check_confirms_nothing_and_the_next_good_one_does() -> None:
    statuses = [200, 503, 200, 200]
    answers: list[tuple[str, int]] = []

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=statuses.pop(0) if statuses else 200)

    async with serving(answer) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            checked.checker.confirm(0, lambda why: answers.append((why, len(statuses))))
            for count in (2, 3, 4):
                await until(lambda so_far=count: sum(checked.counters.checks.values()) == so_far)  # type: ignore[misc]
                checked.checker.check_now(0)
            await until(lambda: not statuses)
    assert answers == [("HTTP 503", 2), ("", 1)], "not after the good one"


async def test_one_that_fell_is_not_confirmed_before_it_is_in_the_rotation_again() -> None:
    well = True
    confirmed: list[tuple[str, int]] = []

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=200 if well else 503)

    async with serving(answer) as address:
        checked = CheckedPool(address)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            well = False
            await until(lambda: checked.pool.in_rotation == 0)
            checked.checker.confirm(
                0, lambda why: confirmed.append((why, checked.pool.in_rotation))
            )
            well = True
            await until(lambda: ("", 1) in confirmed)
    assert confirmed.count(("", 1)) == 1
    assert set(confirmed) <= {("HTTP 503", 0), ("", 1)}


async def test_a_question_outlives_another_way_to_check() -> None:
    well = True
    confirmed: list[str] = []

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=200 if well else 503)

    async with serving(answer) as address:
        checked = CheckedPool(address)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            well = False
            await until(lambda: checked.pool.in_rotation == 0)
            checked.checker.confirm(0, confirmed.append)
            checked.use(Health(path="/healthz?deep", interval=FAST))
            well = True
            await until(lambda: "" in confirmed)
    assert confirmed.count("") == 1


async def test_one_that_is_up_is_checked_once_when_its_checks_change_and_somebody_asks() -> None:
    answers: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.query_string != "new" else 404)

    async with serving(answer) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            checked.use(Health(path="/healthz?new", interval=HOUR, fall=2))
            checked.checker.confirm(0, answers.append)
            await until(lambda: bool(answers))
            checked.use(Health(path="/healthz", interval=HOUR, fall=2))
            checked.checker.confirm(0, answers.append)
            await until(lambda: "" in answers)
    assert answers == ["HTTP 404", ""]
    assert checked.changes == ["passed its first check"], "one bad check has not taken it down"


async def test_one_that_is_down_is_checked_at_once_when_its_checks_change() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.query_string == "new" else 404)

    async with serving(answer) as address:
        checked = CheckedPool(address)
        async with checked.running():
            await until(lambda: checked.member.bad_checks > 2)
            checked.use(Health(path="/healthz?new", interval=HOUR))
            await until(lambda: checked.pool.in_rotation == 1)


async def test_each_member_is_checked_in_its_own_way() -> None:
    asked: dict[int, set[str]] = {0: set(), 1: set()}

    async def note(member: Member) -> probes.ProbeResult:
        asked[member.number].add(member.health.path or "")
        return probes.HEALTHY

    checked = CheckedPool("127.0.0.1:1", "127.0.0.1:2", probe=note)
    async with checked.running():
        await until(lambda: checked.pool.in_rotation == 2)
        checked.pool.set_health(1, Health(path="/new", interval=FAST))
        checked.checker.configure(note)
        await until(lambda: "/new" in asked[1])
    assert asked[0] == {"/healthz"}


async def test_the_result_of_a_process_that_has_ended_does_not_count() -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    statuses = iter((500, 200))

    async def answer(_request: web.Request) -> web.Response:
        status = next(statuses)
        asked.set()
        await answered.wait()
        return web.Response(status=status)

    async with serving(answer) as address:
        checked = CheckedPool(address, interval=HOUR)
        async with checked.running():
            await asked.wait()
            checked.pool.leave(0)
            checked.pool.join(0)
            checked.checker.check_now(0)
            answered.set()
            await until(lambda: checked.pool.in_rotation == 1)
    assert dict(checked.counters.checks) == {(0, "ok"): 1}


async def test_a_member_that_is_added_to_an_empty_pool_is_checked() -> None:
    async with serving(healthy) as address:
        checked = CheckedPool(interval=HOUR)
        checked.add(3, address)  # before it runs
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            checked.remove(3)
            checked.add(7, address)
            await until(lambda: checked.pool.in_rotation == 1)
            assert checked.pool.pick("client") is checked.pool.member(7)
    assert dict(checked.counters.checks) == {(3, "ok"): 1, (7, "ok"): 1}


async def test_the_first_checks_of_many_members_begin_in_many_turns_and_the_second_are_spread() -> (
    None
):
    begun: list[int] = []

    async def probe(member: Member) -> probes.ProbeResult:
        begun.append(member.number)
        return probes.HEALTHY

    # The random part of the first interval is nothing here, and all later ones are an hour.
    checked = CheckedPool(*("127.0.0.1:1",) * 40, interval=HOUR, random=lambda: 0.0, probe=probe)
    async with checked.running():
        turns = []
        while len(begun) < 80:
            before = len(begun)
            await asyncio.sleep(0)
            turns.append(len(set(begun)) - len(set(begun[:before])))
        assert max(turns) <= 4
        for _ in range(50):
            await asyncio.sleep(0)
        assert sorted(begun) == sorted([*range(40), *range(40)])


async def test_a_removed_member_is_checked_no_more_and_all_others_are() -> None:
    async with serving(healthy) as address:
        checked = CheckedPool(address, address)
        checks = checked.counters.checks
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 2)
            checked.remove(0)
            before, others = checks[0, "ok"], checks[1, "ok"]
            await until(lambda: checks[1, "ok"] > others + 10)
    assert checks[0, "ok"] == before


async def test_members_that_are_checked_by_address_have_no_task() -> None:
    async with responding(b"") as address:
        checked = CheckedPool(*(address,) * 40, path=None, interval=HOUR)
        before = len(asyncio.all_tasks())
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 40)
            # That of `running`.
            await until(lambda: len(asyncio.all_tasks()) <= before + 1)


async def test_a_check_in_progress_is_cancelled_and_the_next_in_its_slot_begins() -> None:
    asked = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(hang) as slow, serving(healthy) as quick:
        checked = CheckedPool(slow, interval=HOUR)
        async with checked.running():
            await asked.wait()
            checked.remove(0)
            member = checked.add(0, quick)
            await until(lambda: member.state is MemberState.UP)
    assert dict(checked.counters.checks) == {(0, "ok"): 1}


async def test_the_probe_of_a_removed_member_is_cancelled() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_member: Member) -> probes.ProbeResult:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    checked = CheckedPool("", probe=hang, interval=HOUR, timeout=HOUR)
    async with checked.running():
        await asked.wait()
        checked.remove(0)
        await until(cancelled.is_set)


async def test_no_task_is_left_of_removed_members() -> None:
    async with responding(b"") as address:
        checked = CheckedPool(address, path=None)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
            before = len(asyncio.all_tasks())
            for slot in range(1, 20):
                member = checked.add(slot, address)
                if slot % 2:
                    await until(lambda one=member: one.state is MemberState.UP)  # type: ignore[misc]
                checked.remove(slot)
            await until(lambda: len(asyncio.all_tasks()) == before)
    checked.add(20, address)  # after it ran: nothing happens
    checked.remove(20)
    checked.remove(0)


async def test_the_task_of_a_removed_member_ends_even_if_its_probe_is_not_cancelled() -> None:
    asked = asyncio.Event()

    async def stubborn(_member: Member) -> probes.ProbeResult:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return probes.ProbeResult("failed")
        raise AssertionError

    checked = CheckedPool("", probe=stubborn, interval=HOUR)
    async with checked.running():
        await asked.wait()
        before = len(asyncio.all_tasks())
        checked.remove(0)
        await until(lambda: len(asyncio.all_tasks()) == before - 1)
    assert not checked.counters.checks


async def test_a_bug_in_one_check_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(probes, "request", broken)
    checked = CheckedPool("127.0.0.1:1")
    async with checked.running():
        await until(lambda: checked.count("failed") >= 2)
    assert checked.member.reason == "no good check yet: the check itself: ValueError"
    assert "nobody thought of this" in caplog.text


async def test_a_shortage_of_the_proxys_own_is_no_failed_check_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses = []

    def draw() -> float:
        pauses.append(1)
        return 0.5

    # The server is in the same process, and closes its side of a check when it likes.
    first = next_descriptor()
    async with responding(b"") as address:
        checked = CheckedPool(address, path=None, random=draw)
        async with checked.running():
            await until(lambda: checked.count("ok") > 0)
            with no_descriptor_left(since=first):
                before = len(pauses)
                await until(lambda: len(pauses) > before + 5)
            good = checked.count("ok")
            await until(lambda: checked.count("ok") > good)
    assert set(checked.counters.checks) == {(0, "ok")}
    # The server of this test is in the same process, and its loop may say so as well.
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("penstock")]
    assert len([line for line in ours if "Too many open files" in line]) == 1


# When


@pytest.mark.parametrize(("drawn", "share"), [(0.0, 0.9), (0.5, 1.0), (0.75, 1.05)])
def test_checks_are_a_tenth_more_or_less_than_an_interval_apart(drawn: float, share: float) -> None:
    checked = CheckedPool("127.0.0.1:1", interval=2.0, random=lambda: drawn)
    checked.member.state = MemberState.UP
    assert checked.checker._pause(checked.member) == pytest.approx(2.0 * share)


def test_a_starting_member_is_checked_often_but_not_for_ever() -> None:
    checked = CheckedPool("127.0.0.1:1", interval=2.0)
    assert checked.checker._pause(checked.member) == STARTING_INTERVAL_S
    checked.member.bad_checks = MAX_STARTING_CHECKS
    assert checked.checker._pause(checked.member) == 2.0
    often = CheckedPool("127.0.0.1:1", interval=0.1)
    assert often.checker._pause(often.member) == 0.1


async def test_a_check_takes_its_times_from_the_clock() -> None:
    async with serving(healthy) as address:
        checked = CheckedPool(address, interval=HOUR, clock=iter((100.0, 100.25)).__next__)
        async with checked.running():
            await until(lambda: checked.pool.in_rotation == 1)
    assert checked.counters.check_seconds.sum_s == 0.25
    assert checked.member.up_since == 100.25
