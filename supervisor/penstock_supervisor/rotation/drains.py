"""DRAIN_WORKER messages that not all proxies have answered.

A worker may be told to stop only when no proxy picks it any more, so each of them is asked, and
each answers. One that has ended picks nobody, and neither does one that is stuck: it has a second.
Must not know what follows when all have answered (`on_drained`).
"""

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple

from penstock_supervisor.children.child import Child

_TIMEOUT_S: Final = 1.0
"""A proxy that does not answer is stuck, and a stuck proxy picks no worker."""


class _Drain(NamedTuple):
    timer: TimerHandle
    on_drained: Callable[[], None]
    unanswered: set[Child]
    """Proxies that have not answered."""


class Drains:
    """By number of the message."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers = count(1)
        self._drains: dict[int, _Drain] = {}

    def begin(self, ask: Callable[[int], set[Child]], on_drained: Callable[[], None]) -> None:
        """`ask(number)` sends the message and returns the proxies that it was sent to.

        A proxy that is away need not be asked: its successor picks only workers that it is told
        about.
        """
        number = next(self._numbers)
        timer = self._loop.call_later(_TIMEOUT_S, self._finish, number)
        asked = ask(number)
        self._drains[number] = _Drain(timer, on_drained, asked)
        if not asked:
            self._loop.call_soon(self._finish, number)

    def answered(self, number: object, proxy: Child) -> None:
        """This proxy does not pick the worker any more."""
        drain = self._drains.get(number) if isinstance(number, int) else None
        if drain is not None and isinstance(number, int):
            drain.unanswered.discard(proxy)
            if not drain.unanswered:
                self._finish(number)

    def proxy_exited(self, proxy: Child) -> None:
        """It picks nobody."""
        for number in tuple(self._drains):
            self.answered(number, proxy)

    def close(self) -> None:
        for drain in self._drains.values():
            drain.timer.cancel()

    def _finish(self, number: int) -> None:
        if (drain := self._drains.pop(number, None)) is not None:
            drain.timer.cancel()
            drain.on_drained()
