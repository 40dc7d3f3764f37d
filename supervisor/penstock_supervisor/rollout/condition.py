"""Wait until a condition about the run is true.

There is one object for a whole run. Everything that can make a condition true calls `notify`.
So nobody polls, and a condition is a plain function of the run's state.
"""

import asyncio
from collections.abc import Callable


class Condition:
    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Something changed: every waiting condition is evaluated again."""
        for event in self._waiting:
            event.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` is true. It is called once now, and after each change."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            while not condition():
                event.clear()
                await event.wait()
        finally:
            self._waiting.discard(event)
