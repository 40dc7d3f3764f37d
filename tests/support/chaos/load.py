"""Clients of a storm: the requests that they send, and their verdicts on the answers.

Each client runs one scene after another (see `scenes`), one connection each, chosen by its own
random numbers. Every answer is compared with the one that follows from the request's name.
Another request's answer, a byte too many or a silent end is *wrong*, and kept as text.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.chaos import deal
from tests.support.chaos.client import Answer, Client, Cut, NonsenseError
from tests.support.chaos.ledger import Ledger

if TYPE_CHECKING:
    from tests.support.chaos.scenes import Promise

TIME_LIMIT_S: Final = 60.0
"""Nothing in a storm's configuration takes as long; beyond it a request is lost."""
BETWEEN_DEATHS_S: Final = 0.7
"""Queries of death that came faster would leave nothing but the first worker."""
REPEATABLE: Final = (b"GET", b"HEAD")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    name: bytes
    method: bytes = b"GET"
    size: int = 100
    """Of the answer's body."""
    form: bytes = b"sized"
    body: bytes | None = None
    chunked: bool = False
    minor: int = 1
    closes: bool = False

    def head(self) -> bytes:
        start = b"%b /%b/%d/%b HTTP/1.%d\r\nHost: chaos\r\n" % (
            self.method, self.name, self.size, self.form, self.minor,
        )  # fmt: skip
        if self.closes:
            start += b"Connection: close\r\n"
        if self.body is not None and self.chunked:
            return start + b"Transfer-Encoding: chunked\r\n\r\n"
        if self.body is not None:
            return start + b"Content-Length: %d\r\n\r\n" % len(self.body)
        return start + b"\r\n"

    def payload(self) -> bytes:
        body = self.body or b""
        if not self.chunked:
            return body
        step = len(body) // 3 + 1
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"

    @property
    def is_repeatable(self) -> bool:
        """The proxy has to see to it that it succeeds, as long as it has not begun to answer."""
        return self.method in REPEATABLE and self.body is None


Connect = Callable[[], Awaitable[Client]]
Scene = Callable[["Load", Client, random.Random], Awaitable[None]]


class Load:
    """All clients of one storm against one service."""

    def __init__(self, seed: str, connect: Connect, promise: "Promise", ledger: Ledger) -> None:
        self.ledger = ledger
        self.promise = promise
        self.connections = 0
        self.got = 0
        """Bytes that clients received."""
        self.given = 0
        """Bytes that clients sent."""
        self.answered: dict[bytes, int] = {}
        """By name: the status that its client saw."""
        self.restless = True
        """Clients begin new scenes."""
        self.vanishing = 0.15
        """Share of the scenes whose client leaves before its time."""
        self.largest = 200_000
        self._seed = seed
        self._connect = connect
        self._last = 0
        self._next_death = 0.0

    async def client(self, number: int) -> None:
        """One client, until there is rest."""
        dice = random.Random(f"{self._seed}/{number}")
        while self.restless:
            leaves = dice.random() < self.vanishing
            scenes = self.promise.leaving if leaves else self.promise.staying
            await self._play(dice.choice(scenes), dice)

    async def _play(self, scene: Scene, dice: random.Random) -> None:
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                client = await self._connect()
        except ConnectionResetError:
            # It stood, and was cut before we looked: nothing was asked yet.
            self.connections += 1
            return
        except (OSError, TimeoutError, Cut) as error:
            if not self.promise.may_break:
                self.wrong(f"cannot connect: {error!r}")
            await asyncio.sleep(0.1)
            return
        self.connections += 1
        with closing(client):
            try:
                await scene(self, client, dice)
            except NonsenseError as nonsense:
                self.wrong(f"{scene.__name__}: not HTTP: {nonsense}")
            if client.sock.fileno() >= 0 and client.surplus:
                self.wrong(f"{scene.__name__}: unexpected bytes {client.surplus[:60]!r}")
        self.got += client.got
        self.given += client.given

    def is_time_for_a_death(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._next_death:
            return False
        self._next_death = now + BETWEEN_DEATHS_S
        return True

    # -- asking and judging

    def name(self) -> bytes:
        self._last += 1
        return b"n%d" % self._last

    def any(self, dice: random.Random, *, closes: bool = False) -> Ask:
        """Some request, of any kind."""
        method = dice.choice((b"GET", b"GET", b"GET", b"HEAD", b"PUT", b"POST"))
        size = int(dice.choice((0, 1, 100, 100, 5_000, self.largest)) * dice.random())
        body = None
        if method in (b"PUT", b"POST"):
            length = int(dice.choice((0, 100, 100, 5_000, self.largest)) * dice.random())
            body = dice.randbytes(length)
        return Ask(
            self.name(), method, size, dice.choice(self.promise.forms), body,
            chunked=body is not None and dice.random() < 0.5, closes=closes,
        )  # fmt: skip

    async def send(self, client: Client, ask: Ask) -> None:
        """A whole request. A cut is noticed when its answer is read, which may have arrived."""
        self.ledger.sent += 1
        with suppress(Cut):
            await client.send(ask.head() + ask.payload())

    async def expect(self, client: Client, ask: Ask, *, behind: bool = False) -> bool:
        """The answer to it. Can another one follow? `behind`: others were asked before it."""
        ledger = self.ledger
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                answer = await client.answer(ask.method)
        except TimeoutError:
            ledger.lost += 1
            self.wrong(f"{ask.name!r}: neither an answer nor an end")
            return False
        except Cut as cut:
            ledger.cut += 1
            self._judge_cut(ask, cut, client.take(), behind=behind)
            return False
        ledger.answered += 1
        self.answered[ask.name] = answer.status
        return self.judge(ask, answer) and answer.stays

    def _judge_cut(self, ask: Ask, cut: Cut, rest: bytes, *, behind: bool) -> None:
        """`rest`: what came of an answer's head, or of a chunk's line."""
        named = rest.partition(b"X-Chaos: ")[2].partition(b"\r")[0]
        if not ask.name.startswith(named):
            self.wrong(f"{ask.name!r}: cut, and in another's head: {rest[:100]!r}")
        if cut.status == 200 and not deal.body(ask.name, ask.size).startswith(cut.body):
            self.wrong(f"{ask.name!r}: cut, and of another's answer")
        has_to = self.promise.repeats and not self.promise.may_break and ask.is_repeatable
        if has_to and not cut.status and not behind:
            self.wrong(f"{ask.name!r}: {ask.method!r} cut before an answer began: {cut}")

    def judge(self, ask: Ask, answer: Answer) -> bool:
        if b"x-chaos" not in answer.fields:
            self.ledger.refused += 1
            # Who has seen a 1xx has seen something of an answer.
            has_to = self.promise.repeats and ask.is_repeatable and not answer.interim
            if answer.status < 500 or has_to:
                self.wrong(f"{ask.name!r}: {ask.method!r} refused: {answer.status} {answer.body!r}")
            return answer.status in (502, 503, 504)
        expected = b"" if ask.method == b"HEAD" else deal.body(ask.name, ask.size)
        if answer.status != 200 or answer.fields[b"x-chaos"] != ask.name:
            self.wrong(f"{ask.name!r} got {answer.status} of {answer.fields[b'x-chaos']!r}")
        elif (
            answer.body != expected
            and ask.form == b"until-close"
            and expected.startswith(answer.body)
        ):
            # Its worker died: that ends such an answer, too, and is all that anybody can know.
            self.ledger.faults["an end that looked like one"] += 1
        elif answer.body != expected:
            self.wrong(f"{ask.name!r}: a wrong body of {len(answer.body)} bytes, not {ask.size}")
        elif ask.body is not None and self._misheard(ask, answer):
            self.wrong(f"{ask.name!r}: its worker's digest is {answer.fields[b'x-digest']!r}")
        return True

    def _misheard(self, ask: Ask, answer: Answer) -> bool:
        digest = answer.fields[b"x-digest"]
        early = digest == deal.digest(b"")
        return digest != deal.digest(ask.body or b"") and not (early and ask.method == b"POST")

    def wrong(self, what: str) -> None:
        self.ledger.wrong.append(what)

    def left(self, why: str) -> None:
        self.ledger.sent += 1
        self.ledger.left += 1
        self.ledger.faults[f"a client that {why}"] += 1
