"""Clients of a storm: what they ask, and what they make of the answers.

Each client goes from scene to scene, one connection each, by dice of its own. A scene asks
in one of the ways in which clients ask, or leaves in one of the ways in which they leave.
Every answer is compared with the one that follows from the request's name: another one's
answer, a byte too many or a silent end is *wrong*, and kept in words.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from tests.chaos import deal
from tests.chaos.client import Answer, Client, Cut, NonsenseError
from tests.chaos.ledger import Ledger

PATIENCE_S: Final = 60.0
"""Nothing in a storm's configuration takes as long; who waits longer has lost its request."""
REPEATABLE: Final = (b"GET", b"HEAD")
LARGE: Final = 1 << 20


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
        """The front has to see to it that it succeeds, as long as it has not begun to answer."""
        return self.method in REPEATABLE and self.body is None


Connect = Callable[[], Awaitable[Client]]


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

    async def client(self, number: int) -> None:
        """One client, until there is rest."""
        dice = random.Random(f"{self._seed}/{number}")
        while self.restless:
            leaves = dice.random() < self.vanishing
            scenes = self.promise.leaving if leaves else self.promise.staying
            await self._play(dice.choice(scenes), dice)

    async def _play(self, scene: "Scene", dice: random.Random) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                client = await self._connect()
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
                self.wrong(f"{scene.__name__}: nobody asked for {client.surplus[:60]!r}")
        self.got += client.got
        self.given += client.given

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
        """A whole request. A cut here is heard when its answer is read: that may be there."""
        self.ledger.sent += 1
        with suppress(Cut):
            await client.send(ask.head() + ask.payload())

    async def expect(self, client: Client, ask: Ask, *, behind: bool = False) -> bool:
        """The answer to it. Can another one follow? `behind`: others were asked before it."""
        ledger = self.ledger
        try:
            async with asyncio.timeout(PATIENCE_S):
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
        named = rest.partition(b"X-Chaos: ")[2].partition(b"\r\n")[0]
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
            self.wrong(f"{ask.name!r}: its worker heard {answer.fields[b'x-heard']!r}")
        return True

    def _misheard(self, ask: Ask, answer: Answer) -> bool:
        heard = answer.fields[b"x-heard"]
        early = heard == deal.heard(b"")
        return heard != deal.heard(ask.body or b"") and not (early and ask.method == b"POST")

    def wrong(self, what: str) -> None:
        self.ledger.wrong.append(what)

    def left(self, why: str) -> None:
        self.ledger.sent += 1
        self.ledger.left += 1
        self.ledger.faults[f"a client that {why}"] += 1


Scene = Callable[[Load, Client, random.Random], Awaitable[None]]


# -- who stays


async def one_after_the_other(load: Load, client: Client, dice: random.Random) -> None:
    for _ in range(dice.randrange(1, 20)):
        ask = load.any(dice)
        await load.send(client, ask)
        if not await load.expect(client, ask):
            return


async def only_one(load: Load, client: Client, dice: random.Random) -> None:
    ask = load.any(dice, closes=True)
    await load.send(client, ask)
    if await load.expect(client, ask):
        load.wrong(f"{ask.name!r}: asked to close, and was told that it stays")


async def an_old_one(load: Load, client: Client, dice: random.Random) -> None:
    """HTTP/1.0: the end of the connection is the end of the answer."""
    form = dice.choice(tuple(form for form in load.promise.forms if form != b"until-close"))
    ask = Ask(load.name(), size=dice.randrange(3_000), form=form, minor=0)
    await load.send(client, ask)
    await load.expect(client, ask)


async def all_at_once(load: Load, client: Client, dice: random.Random) -> None:
    """Pipelined: the answers come in the order of the requests."""
    asks = [load.any(dice) for _ in range(dice.randrange(2, 8))]
    asks = [ask for ask in asks if ask.body is None] or [Ask(load.name())]
    load.ledger.sent += len(asks)
    await _tolerant(client, b"".join(ask.head() for ask in asks))
    stays = True
    for number, ask in enumerate(asks):
        if stays:
            stays = await load.expect(client, ask, behind=number > 0)
        else:
            load.ledger.cut += 1


async def byte_by_byte(load: Load, client: Client, dice: random.Random) -> None:
    """A request that drips in."""
    ask = Ask(load.name(), b"POST", 50, body=dice.randbytes(20))
    load.ledger.sent += 1
    data = ask.head() + ask.payload()
    with suppress(Cut):
        for at in range(0, len(data), 7):
            await client.send(data[at : at + 7])
            await asyncio.sleep(0.001)
    await load.expect(client, ask)


async def upgraded(load: Load, client: Client, dice: random.Random) -> None:
    name = load.name()
    ask = Ask(name)
    load.ledger.sent += 1
    head = ask.head()[:-2] + b"Connection: Upgrade\r\nUpgrade: chaos\r\n\r\n"
    try:
        await client.send(head)
        async with asyncio.timeout(PATIENCE_S):
            answer = await client.answer()
    except (Cut, TimeoutError):
        load.ledger.cut += 1
        client.take()
        return
    load.ledger.answered += 1
    load.answered[name] = answer.status
    if answer.status != 101:
        load.judge(ask, answer)
        return
    if answer.fields.get(b"x-chaos") != name:
        load.wrong(f"{name!r}: upgraded by another")
    await echoed(load, client, dice)


async def echoed(load: Load, client: Client, dice: random.Random) -> None:
    """Frames there and back over whatever is between; then the end, there and back."""
    for _ in range(dice.randrange(1, 8)):
        name = load.name()
        frame = name + deal.body(name, int(dice.choice((10, 1_000, load.largest)) * dice.random()))
        if not await _comes_back(load, client, frame):
            return
    client.finish()
    try:
        async with asyncio.timeout(PATIENCE_S):
            rest, _ = await client.rest()
    except TimeoutError:
        load.wrong("an end of file that did not come back")
    else:
        if rest:
            load.wrong(f"an echo of nothing: {rest[:60]!r}")


async def _comes_back(load: Load, client: Client, frame: bytes) -> bool:
    """One frame. Can another follow?"""
    load.ledger.sent += 1
    try:
        async with asyncio.timeout(PATIENCE_S):
            back = await client.there_and_back(frame)
    except Cut:
        load.ledger.cut += 1
        if not frame.startswith(client.take()):
            load.wrong(f"{frame[:20]!r}: cut, and of another's echo")
        return False
    except TimeoutError:
        load.ledger.lost += 1
        load.wrong(f"{frame[:20]!r}: neither an echo nor an end")
        return False
    load.ledger.answered += 1
    if back != frame:
        load.wrong(f"{frame[:20]!r}: another's echo")
    return back == frame


async def _tolerant(client: Client, data: bytes) -> None:
    with suppress(Cut):
        await client.send(data)


# -- who leaves


async def gone_before_a_word(load: Load, client: Client, dice: random.Random) -> None:
    load.left("never said a word")
    _leave(client, dice)


async def gone_in_its_head(load: Load, client: Client, dice: random.Random) -> None:
    data = load.any(dice).head()
    load.left("left in its head")
    await _tolerant(client, data[: dice.randrange(len(data))])
    _leave(client, dice)


async def gone_in_its_body(load: Load, client: Client, dice: random.Random) -> None:
    ask = Ask(load.name(), b"POST", body=bytes(30_000), chunked=dice.random() < 0.5)
    load.left("left in its body")
    await _tolerant(client, ask.head() + ask.payload()[: dice.randrange(30_000)])
    _leave(client, dice)


async def gone_before_its_answer(load: Load, client: Client, dice: random.Random) -> None:
    load.left("left before its answer")
    await _tolerant(client, load.any(dice).head())
    _leave(client, dice)


async def gone_in_its_answer(load: Load, client: Client, dice: random.Random) -> None:
    load.left("left in its answer")
    await _tolerant(client, Ask(load.name(), size=LARGE).head())
    with suppress(Cut, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await client.more()
    _leave(client, dice)


async def gone_with_answers_to_come(load: Load, client: Client, dice: random.Random) -> None:
    for _ in range(5):
        load.left("left with answers to come")
        await _tolerant(client, Ask(load.name(), size=20_000).head())
    _leave(client, dice)


async def reads_no_more(load: Load, client: Client, dice: random.Random) -> None:
    """Asks for more than any buffer holds, and does not read it."""
    for _ in range(4):
        load.left("stopped reading")
        await _tolerant(client, Ask(load.name(), size=4 * LARGE).head())
    await asyncio.sleep(dice.random())
    _leave(client, dice)


def _leave(client: Client, dice: random.Random) -> None:
    client.end(dice.choice(("fin", "rst")))


async def half_gone(load: Load, client: Client, dice: random.Random) -> None:
    """Says that it will say no more, and reads on: gets its answer, or the end."""
    ask = Ask(load.name(), size=dice.randrange(3_000))
    load.left("closed its half")
    try:
        await client.send(ask.head())
        client.finish()
        async with asyncio.timeout(PATIENCE_S):
            answer = await client.answer()
    except Cut:
        client.take()
        return
    except TimeoutError:
        load.wrong(f"{ask.name!r}: a half-closed connection without an end")
        return
    if b"x-chaos" in answer.fields and answer.body != deal.body(ask.name, ask.size):
        load.wrong(f"{ask.name!r}: half-closed, and got another's answer")


HTTP: Final[tuple[Scene, ...]] = (
    one_after_the_other,
    one_after_the_other,
    one_after_the_other,
    only_one,
    an_old_one,
    all_at_once,
    byte_by_byte,
    upgraded,
)
PLAIN: Final[tuple[Scene, ...]] = tuple(scene for scene in HTTP if scene is not upgraded)
"""For workers that know no upgrade."""
TCP: Final[tuple[Scene, ...]] = (echoed,)
TCP_VANISHING: Final[tuple[Scene, ...]] = (
    gone_before_a_word,
    gone_in_its_body,
    gone_before_its_answer,
    gone_with_answers_to_come,
    reads_no_more,
)
VANISHING: Final[tuple[Scene, ...]] = (
    gone_before_a_word, gone_in_its_head, gone_in_its_body, gone_before_its_answer,
    gone_in_its_answer, gone_with_answers_to_come, reads_no_more, half_gone,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Promise:
    """What the one in front of the workers promises, and what can be asked of them."""

    repeats: bool = True
    """What can be asked again does not fail by a worker's fault."""
    may_break: bool = False
    """The front itself is killed: whatever it had is cut."""
    forms: tuple[bytes, ...] = (b"sized", b"chunked", b"until-close")
    staying: tuple[Scene, ...] = HTTP
    leaving: tuple[Scene, ...] = VANISHING
