"""The ways in which clients send requests, and those in which they disconnect.

A scene has one connection and ends with it. It sends its requests through its `Load`, which
checks the answers. Answers that a disconnecting client does not wait for are counted as left.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tests.support.chaos import deal
from tests.support.chaos.client import Client, Cut
from tests.support.chaos.load import TIME_LIMIT_S, Ask, Load, Scene

LARGE: Final = 1 << 20


# -- clients that stay


async def one_after_the_other(load: Load, client: Client, dice: random.Random) -> None:
    may_end = False
    for _ in range(dice.randrange(1, 20)):
        ask = load.any(dice)
        await load.send(client, ask)
        if not await load.expect(client, ask, behind=may_end):
            return
        # If it was answered before all of it was read, its connection ends, and that cannot
        # be announced any more when the answer's head was on its way by then.
        may_end = ask.method == b"POST"


async def only_one(load: Load, client: Client, dice: random.Random) -> None:
    ask = load.any(dice, closes=True)
    await load.send(client, ask)
    if await load.expect(client, ask):
        load.wrong(f"{ask.name!r}: asked to close, but the response keeps the connection")


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
        async with asyncio.timeout(TIME_LIMIT_S):
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
        async with asyncio.timeout(TIME_LIMIT_S):
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
        async with asyncio.timeout(TIME_LIMIT_S):
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


async def query_of_death(load: Load, client: Client, dice: random.Random) -> None:
    """A request that ends the worker that reads it; about one a second of all clients."""
    if not load.is_time_for_a_death():
        await only_one(load, client, dice)
        return
    ask = Ask(load.name(), form=deal.DEATH)
    load.ledger.faults["a query of death"] += 1
    await load.send(client, ask)
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            answer = await client.answer()
    except Cut:
        load.ledger.cut += 1
        client.take()
        return
    load.ledger.answered += 1
    load.answered[ask.name] = answer.status
    if answer.status not in (200, 502, 503):
        load.wrong(f"{ask.name!r}: a query of death got {answer.status}")


async def _tolerant(client: Client, data: bytes) -> None:
    with suppress(Cut):
        await client.send(data)


# -- clients that disconnect


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
        async with asyncio.timeout(TIME_LIMIT_S):
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
    """Half-closes and reads on: gets its answer, or the end."""
    ask = Ask(load.name(), size=dice.randrange(3_000))
    load.left("closed its half")
    try:
        await client.send(ask.head())
        client.finish()
        async with asyncio.timeout(TIME_LIMIT_S):
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
DEADLY: Final[tuple[Scene, ...]] = (*PLAIN, query_of_death, query_of_death)
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
    """The proxy itself is killed: whatever it had is cut."""
    forms: tuple[bytes, ...] = (b"sized", b"chunked", b"until-close")
    staying: tuple[Scene, ...] = HTTP
    leaving: tuple[Scene, ...] = VANISHING
