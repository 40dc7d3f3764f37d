"""Many clients at once, and checks of their answers and of the run."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.support.live.cluster import Cluster


DEMO = "penstock_worker.demo:app"
SCHEMES = ("ports", "handoff", "shared", "reuseport")
PASSED = ("handoff", "shared", "reuseport")
AT_ONCE = 32
GET = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


PROGRAM = """
import asyncio, os
from aiohttp import web
from penstock_worker import process

async def hello(request):
    return web.Response(text=f"hello from {process.slot} (pid {os.getpid()})")

async def slow(request):
    await asyncio.sleep(float(request.query["s"]))
    return web.Response(text=f"slept in {os.getpid()}")

async def retire(request):
    process.retire("had enough")
    return web.Response(text=str(os.getpid()))

async def throw(request):
    def broken():
        raise RuntimeError("nobody catches this")
    asyncio.get_running_loop().call_soon(broken)
    return web.Response(text=str(os.getpid()))

async def say(request):
    process.send({"from": process.slot})
    return web.Response(text="said")

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/slow", slow)
app.router.add_get("/retire", retire)
app.router.add_get("/throw", throw)
app.router.add_get("/say", say)
app.router.add_get("/healthz", hello)
"""


async def once(address: tuple[str, int], path: bytes = b"/") -> str:
    """One request on a connection of its own; its body, or what went wrong."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        return f"connect: {error.strerror}"
    try:
        writer.write(GET % path)
        answer = await asyncio.wait_for(reader.read(), 60)
    except (OSError, TimeoutError) as error:
        return f"lost: {type(error).__name__}"
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return f"answer: {head[:40]!r}"
    return body.decode()


async def request_many(
    address: tuple[str, int],
    count: int,
    *,
    meanwhile: Callable[[int], Awaitable[object] | None] = lambda _: None,
) -> list[str]:
    """`count` clients, AT_ONCE at a time; `meanwhile(n)` is called after each n-th answer."""
    answers: list[str] = []
    started = 0

    async def client() -> None:
        nonlocal started
        while started < count:
            started += 1
            answers.append(await once(address))
            if (todo := meanwhile(len(answers))) is not None:
                await todo

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return answers


def pids(run: "Cluster") -> set[int]:
    return {worker["pid"] for worker in run.workers()}


def settled(run: "Cluster", count: int, but: set[int]) -> None:
    """Wait until `count` workers are up, none of them in `but`."""

    def are_there() -> bool:
        workers = run.workers()
        fresh = {worker["pid"] for worker in workers if worker["health"] == "up"}
        return len(fresh) == count and not fresh & but

    run.until(are_there)


def failures(answers: list[str]) -> list[str]:
    return [answer for answer in answers if not answer.startswith("hello")]


def handoffs(run: "Cluster", result: str) -> float:
    return run.metric("penstock_handoffs_total", result=result)


def descriptors(run: "Cluster") -> Counter[str]:
    """Open ones by role, as the kernel has it."""
    status = run.status()
    found = Counter(supervisor=psutil.Process(run.process.pid).num_fds(), proxy=0, workers=0)
    for proxy in status["proxies"]:
        found["proxy"] += psutil.Process(proxy["pid"]).num_fds()
    for worker in run.workers():
        found["workers"] += psutil.Process(worker["pid"]).num_fds()
    # The connection that asked for the status.
    return found
