"""A connection may break at any byte: the other end sees the whole message or sees that it is cut.

A worker ends its answer after every single byte of it, by closing and by resetting. Its client
then has the whole answer, or sees that it has not. A repeatable request is repeated as long as
the client has got nothing of an answer; another one is sent once. And the other way round: a
request that breaks off after any byte is no request.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from tests.support.chaos.client import Answer, Client, Cut
from tests.support.live.wire import until

if TYPE_CHECKING:
    from tests.chaos.conftest import Start
    from tests.support.chaos.ledger import Ledger
    from tests.support.live.cluster import Cluster

WAIT_S: Final = 60.0
AT_ONCE: Final = 16
FACES: Final = 3
"""Addresses of the one worker: a retry goes to another one. A kept connection that was reset may
have cost an attempt before."""
BODY: Final = b"every byte may be the last"
EARLY: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
STEADY: Final[dict[str, Any]] = {
    "ejection": {"failures": 0, "share": "0%"},
    "retries": {"attempts": FACES, "budget": "100%", "min_per_second": 1000},
    "health": {"interval": "1h"},
    "access_log": "./access.log",
}
"""Workers are judged by their answers alone, and none leaves the rotation."""


# -- the responses of a worker


@dataclass(frozen=True, slots=True)
class Form:
    """One way to frame a response, and where its parts end."""

    name: str
    make: Callable[[bytes], bytes]
    """From the fields that identify it."""
    unseen: int = 0
    """Bytes of interim responses before the head."""
    method: bytes = b""
    """The only method it answers; otherwise each."""


def _sized(fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(BODY), BODY)


def _chunked(fields: bytes) -> bytes:
    chunks = b"".join(b"%x;why=not\r\n%b\r\n" % (len(p), p) for p in (BODY[:1], BODY[1:]))
    head = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields
    return head + chunks + b"0\r\nX-Trailer: yes\r\n\r\n"


FORMS: Final = (
    Form("sized", _sized),
    Form("chunked", _chunked),
    Form("until-close", lambda fields: b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (fields, BODY)),
    Form("interim", lambda fields: EARLY + _sized(fields), unseen=len(EARLY)),
    Form("empty", lambda fields: b"HTTP/1.1 204 No Content\r\n%b\r\n" % fields),
    Form("head", lambda fields: _sized(fields)[: -len(BODY)], method=b"HEAD"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and how the first try of it ends."""

    number: int
    form: Form
    method: bytes
    minor: int
    at: int
    ending: str
    used: bool
    """Connections to the workers are there that have carried an exchange before."""

    def __str__(self) -> str:
        return (
            f"{self.form.name}, {self.method.decode()} HTTP/1.{self.minor}, {self.ending} after"
            f" {self.at} bytes{', used' * self.used}"
        )

    def response(self, tried: int) -> bytes:
        return self.form.make(b"X-Chaos: %d\r\nX-Try: %d\r\n" % (self.number, tried))

    def expects(self) -> str:
        """What its client has to see: whole, again, refused, cut, or less (no cut: an end)."""
        data = self.response(1)
        head = data.index(b"\r\n\r\n", self.form.unseen) + 4
        if self.at < head:
            seen = self.form.unseen and self.at >= self.form.unseen
            return "refused" if seen or self.method == b"POST" else "again"
        if self.form.name == "until-close":
            return "less" if self.ending == "fin" else "cut"
        return "whole" if self.at == len(data) else "cut"


def cases() -> Iterator[Case]:
    """Those first that are asked only once: they must not find a connection that its worker
    has closed behind a whole answer, as the others leave them."""
    number = 0
    ends = [*product(FORMS, ("fin", "rst"), (False, True))]
    for wanted, (form, ending, used) in product((b"POST", b"GET"), ends):
        for method in () if form.method and wanted == b"POST" else (form.method or wanted,):
            for minor in (1, 0) if form.name in ("sized", "chunked", "until-close") else (1,):
                if used and (minor == 0 or method == b"POST"):
                    continue
                longest = len(form.make(b"X-Chaos: 00000\r\nX-Try: 1\r\n"))
                for at in range(longest + 1):
                    case = Case(10_000 + number, form, method, minor, at, ending, used)
                    yield case
                    number += 1


class Origin:
    """The worker, behind all of its addresses. It counts how often it got each request."""

    def __init__(self, by_number: dict[int, Case]) -> None:
        self.asked: Counter[int] = Counter()
        self._cases = by_number

    async def serve(self, proxy: Client) -> None:
        while await self._answer(proxy):
            pass

    async def _answer(self, proxy: Client) -> bool:
        head = await proxy.until(b"\r\n\r\n")
        await proxy.exactly(_number(head, b"content-length"))
        if b"\r\nTransfer-Encoding: chunked\r\n" in head:
            await proxy.until(b"0\r\n")
            await proxy.until(b"\r\n\r\n")
        number = _number(head, b"x-chaos")
        self.asked[number] += 1
        case = self._cases.get(number)
        if case is None:
            await proxy.send(_sized(b"X-Chaos: %d\r\n" % number))
            return True
        data = case.response(self.asked[number])
        if self.asked[number] > 1:
            await proxy.send(data)
            return False
        await proxy.send(data[: case.at])
        if case.method == b"POST" and case.expects() == "whole":
            return True
        proxy.end(case.ending)
        return False


def _number(head: bytes, name: bytes) -> int:
    return next(
        (int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n")
         if line.startswith(name + b":")), 0,
    )  # fmt: skip


# -- what its client sees


def request(method: bytes, number: int, minor: int = 1) -> bytes:
    body = b"Content-Length: 4\r\n\r\nbody" if method == b"POST" else b"\r\n"
    return b"%b / HTTP/1.%d\r\nHost: x\r\nX-Chaos: %d\r\n%b" % (method, minor, number, body)


async def seen(client: Client, case: Case) -> tuple[str, Answer | None]:
    """What became of it, in the words of `Case.expects`, and the answer, if it is whole."""
    try:
        answer = await client.answer(case.method)
    except Cut as cut:
        body = cut.body
        assert BODY.startswith(body), f"{case}: {body!r}"
        return "cut", None
    if answer.status == 502:
        return "refused", answer
    assert answer.fields[b"x-chaos"] == b"%d" % case.number, f"{case}: another's answer"
    if case.form.name == "until-close" and answer.fields[b"x-try"] == b"1":
        assert answer.body == BODY[: len(answer.body)], f"{case}: {answer.body!r}"
        return "less", answer
    whole = b"" if case.method == b"HEAD" or answer.status == 204 else BODY
    assert answer.body == whole, f"{case}: {answer.body!r}"
    return ("whole" if answer.fields[b"x-try"] == b"1" else "again"), answer


class Sweep:
    """Goes through all cases, a few at a time."""

    def __init__(self, run: "Cluster", origin: Origin, ledger: "Ledger") -> None:
        self._address = run.address()
        self._origin = origin
        self._ledger = ledger

    async def worker(self, left: Iterator[Case]) -> None:
        for case in left:
            with closing(await Client.connect(self._address)) as client:
                # One connection as long as it stands.
                following: Case | None = case
                while following is not None:
                    async with asyncio.timeout(WAIT_S):
                        stays = await self.step(client, following)
                    following = next(left, None) if stays else None

    async def step(self, client: Client, case: Case) -> bool:
        """One case. Can the connection be used again?"""
        ledger, origin = self._ledger, self._origin
        if case.used:
            for _ in range(FACES):
                await client.send(request(b"GET", 0))
                assert (await client.answer()).body == BODY
                ledger.sent += 1
                ledger.answered += 1
        await client.send(request(case.method, case.number, case.minor))
        ledger.sent += 1
        ledger.faults[f"a worker's {case.ending} behind a byte"] += 1
        outcome, answer = await seen(client, case)
        expected = case.expects()
        assert outcome == expected, f"{case}: {outcome} instead of {expected}"
        assert origin.asked[case.number] == 1 + (outcome == "again"), f"{case}: {answer}"
        if answer is None:
            ledger.cut += 1
            assert not client.surplus, f"{case}: {client.surplus!r} behind the cut"
            return False
        ledger.answered += 1
        ledger.refused += outcome == "refused"
        return case.minor == 1 and answer.stays


@asynccontextmanager
async def listening(
    serve: Callable[[Client], Coroutine[Any, Any, None]],
) -> AsyncIterator[list[str]]:
    """The addresses of a worker with as many faces as it takes."""
    loop = asyncio.get_running_loop()

    async def one(client: Client) -> None:
        with closing(client), suppress(Cut):
            await serve(client)

    async def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            client = Client(sock)
            stack.callback(client.close)
            tasks.append(group.create_task(one(client)))

    with ExitStack() as stack:
        faces = [stack.enter_context(listener()) for _ in range(FACES)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(accept(face)) for face in faces]
            yield ["{}:{}".format(*face.getsockname()) for face in faces]
            for task in tasks:
                task.cancel()


def listener() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    sock.setblocking(False)
    return sock


def at_rest(run: "Cluster") -> None:
    """Nothing is left of any client."""
    until(lambda: run.metric("penstock_connections_active") == 0, "the last client's end")
    assert all(worker["active"] == 0 for worker in run.workers())
    assert run.metric("penstock_queue_length") == 0


async def test_an_answer_that_breaks_off_behind_any_byte_is_whole_or_looks_cut(
    start: "Start", ledger: "Ledger"
) -> None:
    by_number = {case.number: case for case in cases()}
    origin = Origin(by_number)
    async with listening(origin.serve) as faces:
        run = await asyncio.to_thread(start, web={"upstreams": faces, **STEADY})
        left = iter(by_number.values())
        sweep = Sweep(run, origin, ledger)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(sweep.worker(left))
        assert len(by_number) > 3000
        assert ledger.adds_up
        await asyncio.to_thread(at_rest, run)


async def test_a_request_that_breaks_off_behind_any_byte_is_no_request(
    start: "Start", ledger: "Ledger"
) -> None:
    origin = Origin({})
    sized = request(b"POST", 1)
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nX-Chaos: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"4;a=b\r\nbody\r\n0\r\nX-Trailer: yes\r\n\r\n"
    async with listening(origin.serve) as faces:
        run = await asyncio.to_thread(start, web={"upstreams": faces, **STEADY})

        async def leave(whole: bytes, ending: str, at: int) -> None:
            with closing(await Client.connect(run.address())) as client:
                await client.send(whole[:at])
                ledger.sent += 1
                ledger.left += 1
                ledger.faults[f"a client's {ending} behind a byte"] += 1
                if ending == "rst":
                    client.reset()
                    return
                client.finish()
                async with asyncio.timeout(WAIT_S):
                    rest, _ = await client.rest()
                # The end of file is the client's: no answer, or that this was no request.
                assert not rest.startswith(b"HTTP/1.1 2"), (whole[:at], rest)

        await some_at_once(
            leave(whole, ending, at)
            for whole, ending in product((request(b"GET", 1), sized, chunked), ("fin", "rst"))
            for at in range(len(whole))
        )
        assert not origin.asked[1]
        await asyncio.to_thread(at_rest, run)
        assert (await asyncio.to_thread(run.get))[0] == 200


class TcpWorker:
    """A worker behind mode tcp: keeps what it gets, and sends what is asked for, up to a byte."""

    def __init__(self) -> None:
        self.received: dict[bytes, tuple[bytes, bool]] = {}
        """By name: everything, and whether it ended by a clean end of file."""

    async def serve(self, proxy: Client) -> None:
        name, way, at, ending = (await proxy.until(b"\n")).split()
        if way == b"down":
            await proxy.send(BODY[: int(at)])
            proxy.end(ending.decode())
        else:
            self.received[name] = await proxy.rest()


async def test_over_tcp_the_other_end_gets_the_same_bytes_and_the_same_end(
    start: "Start", ledger: "Ledger"
) -> None:
    worker = TcpWorker()
    keys = {**STEADY, "mode": "tcp", "access_log": "off", "retries": {"budget": "100%"}}
    ends = [*product(range(len(BODY) + 1), ("fin", "rst"))]
    async with listening(worker.serve) as faces:
        run = await asyncio.to_thread(start, raw={"upstreams": faces, **keys})

        async def down(at: int, ending: str) -> None:
            with closing(await Client.connect(run.address("raw"))) as client:
                await client.send(b"- down %d %b\n" % (at, ending.encode()))
                async with asyncio.timeout(WAIT_S):
                    rest, clean = await client.rest()
            assert clean == (ending == "fin"), f"down, {ending} after {at} bytes: {clean=}"
            assert rest == BODY[:at] if clean else BODY[:at].startswith(rest)

        async def up(at: int, ending: str) -> None:
            with closing(await Client.connect(run.address("raw"))) as client:
                await client.send(b"%d/%b up 0 fin\n" % (at, ending.encode()) + BODY[:at])
                if ending == "rst":
                    client.reset()
                    return
                client.finish()
                async with asyncio.timeout(WAIT_S):
                    assert await client.rest() == (b"", True)

        await some_at_once(way(at, ending) for way in (down, up) for at, ending in ends)
        await asyncio.to_thread(at_rest, run)
    ledger.sent += 2 * len(ends)
    ledger.cut += 2 * len(ends)
    ledger.faults["a relayed end behind a byte"] += 2 * len(ends)
    for at, ending in ends:
        # A reset may overtake what was sent before it, but it does not become an end of file.
        data, clean = worker.received.get(b"%d/%b" % (at, ending.encode()), (b"", False))
        assert BODY[:at].startswith(data)
        assert (data, clean) == (BODY[:at], True) if ending == "fin" else not clean, (at, ending)


async def some_at_once(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    queue = iter(steps)

    async def follow() -> None:
        for step in queue:
            await step

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(follow())
