"""A call that does not return is left behind, and nobody waits for it."""

import asyncio
import threading

import pytest

from penstock_supervisor import blocking


async def test_the_result_and_the_error_of_a_call_come_back() -> None:
    assert await blocking.within(60.0, "test", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await blocking.within(60.0, "test", divmod, 7, 0)
    with pytest.raises(TimeoutError, match="its own"):
        await blocking.start("test", raise_timeout)


def raise_timeout() -> None:
    raise TimeoutError("its own")


async def test_a_call_that_does_not_return_in_time_is_left_behind() -> None:
    returns = threading.Event()
    with pytest.raises(blocking.BlockedError, match=r"no answer within 0\.01 s"):
        await blocking.within(0.01, "test", returns.wait)
    (thread,) = (one for one in threading.enumerate() if one.name == "test")
    assert thread.daemon
    returns.set()
    await asyncio.to_thread(thread.join, 10)


async def test_how_many_do_not_return_is_bounded_for_each_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking, "MOST", 2)
    returns = threading.Event()
    calls = [blocking.start("test", returns.wait) for _ in range(2)]
    with pytest.raises(blocking.BlockedError, match="2 earlier calls have not returned"):
        blocking.start("test", returns.wait)
    assert await blocking.start("other", int) == 0
    returns.set()
    assert await asyncio.gather(*calls) == [True, True]


def test_a_loop_ends_while_a_call_hangs() -> None:
    returns = threading.Event()

    async def leave() -> None:
        blocking.start("test", returns.wait).cancel()

    asyncio.run(leave())
    (thread,) = (one for one in threading.enumerate() if one.name == "test")
    returns.set()
    thread.join(10)
