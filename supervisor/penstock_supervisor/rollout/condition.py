"""Something is another way than before: who waits for a condition looks again.

One object for a whole run. Everything that a condition can depend on calls `happened`; so
nobody polls, and a condition is a plain function of what is known.
"""

import asyncio
from collections.abc import Callable


class Condition:
    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def notify(self) -> None:
        for event in self._waiting:
            event.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it is true; it is asked again after each change."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            while not condition():
                event.clear()
                await event.wait()
        finally:
            self._waiting.discard(event)
