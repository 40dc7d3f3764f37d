"""Calls that may never return, made in threads that can be left behind.

A file on a mount that hangs, or a name server that is away, blocks whoever asks, and nothing can
interrupt that. So a thread asks. It is a daemon: for other threads asyncio waits when a loop ends,
and Python when it exits, and such a run could only be ended by KILL. How many threads of a kind
there are is bounded, because those that hang stay. Must not know what is called.
"""

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 64
"""Threads of one kind. Each has a stack, of which little is used."""

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class BlockedError(Exception):
    """The call has not returned in time, or too many earlier ones have not."""


def start(
    kind: str, function: "Callable[[*_Arguments], _Result]", *args: *_Arguments
) -> "asyncio.Future[_Result]":
    """Call it in a thread with the name `kind`. Whoever cancels the future leaves it behind.

    BlockedError: too many threads of this kind have not returned.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: "partial[None]") -> None:
        if not future.done():
            result()

    def call() -> None:
        try:
            result = partial(future.set_result, function(*args))
        except Exception as error:  # noqa: BLE001
            # It is raised again where the result is awaited.
            result = partial(future.set_exception, error)
        # The run, and its loop, may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result)

    if sum(thread.name == kind for thread in threading.enumerate()) >= MOST:
        raise BlockedError(f"{MOST} earlier calls have not returned")
    threading.Thread(target=call, name=kind, daemon=True).start()
    return future


async def within(
    seconds: float,
    kind: str,
    function: "Callable[[*_Arguments], _Result]",
    *args: *_Arguments,
) -> _Result:
    """As `start`, and its result. BlockedError: also if it has not come in this time."""
    future = start(kind, function, *args)
    # Not `asyncio.timeout`: the function itself may raise TimeoutError.
    await asyncio.wait({future}, timeout=seconds)
    if not future.done():
        future.cancel()
        raise BlockedError(f"no answer within {seconds:g} s")
    return future.result()
