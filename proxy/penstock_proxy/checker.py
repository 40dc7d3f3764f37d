"""Asks workers whether they are well: one probe after another for each.

Owns: when a worker is asked, how, and for how long an answer is waited for. It judges one
answer and tells the pool; what several answers come to is the pool's to say.

A check opens a connection of its own, as nginx's and HAProxy's do: one kept open would say
nothing of a worker that no longer accepts. An answer that comes after its worker left or
came anew is thrown away. aiohttp is imported at the first check, because a front that was
killed has to be back before anybody notices.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Final

from penstock_proxy.config import Address, Health, parse_address
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.pool import Member, Pool, Standing

if TYPE_CHECKING:
    from aiohttp import ClientSession

_EAGER_S: Final = 0.2
"""Between checks of a worker that has not been well yet: it is only starting."""
_JITTER: Final = 0.1
"""Fronts and workers that started together do not check in step for ever."""
_AGENT: Final = "penstock-health"


class CheckFailedError(Exception):
    """One bad check: `result` for the metric, the message for people."""

    def __init__(self, result: str, why: str) -> None:
        super().__init__(why)
        self.result = result


class Checker:
    """Checks the members of one pool. `run` it as a task; cancel to stop."""

    def __init__(
        self,
        pool: Pool,
        health: Health,
        counters: ServiceCounters,
        *,
        clock: Callable[[], float],
        random: Callable[[], float] = random,
    ) -> None:
        """`clock` in seconds, monotonic; `random` in [0, 1)."""
        self._pool = pool
        self._health = health
        self._counters = counters
        self._clock = clock
        self._random = random
        self._wakes = {member.slot: asyncio.Event() for member in pool.members}
        self._addresses = {m.slot: parse_address(m.address) for m in pool.members}

    def wake(self, slot: int) -> None:
        """Its process is ready: check it now."""
        self._wakes[slot].set()

    async def run(self) -> None:
        """Check until cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self._pool.members:
                group.create_task(self._watch(member))

    async def _watch(self, member: Member) -> None:
        wake = self._wakes[member.slot]
        while True:
            if member.standing is Standing.ABSENT:
                await wake.wait()
            wake.clear()
            if member.standing is not Standing.ABSENT:
                await self._check(member)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause(member)):
                        await wake.wait()

    def _pause(self, member: Member) -> float:
        interval = self._health.interval
        if member.standing is Standing.CHECKING:
            return min(interval, _EAGER_S)
        return interval * (1 + _JITTER * (2 * self._random() - 1))

    async def _check(self, member: Member) -> None:
        generation, began = member.generation, self._clock()
        ok, result, why = True, "ok", ""
        try:
            async with asyncio.timeout(self._health.timeout):
                await self._probe(self._addresses[member.slot])
        except CheckFailedError as failure:
            ok, result, why = False, failure.result, str(failure)
        except TimeoutError:
            ok, result, why = False, "timeout", f"no answer in {self._health.timeout:g} s"
        except ConnectionRefusedError:
            ok, result, why = False, "refused", "connection refused"
        except OSError as error:
            ok, result, why = False, "failed", error.strerror or str(error)
        now = self._clock()
        self._counters.checks[member.slot, result] += 1
        self._counters.check_seconds.observe(now - began)
        if member.generation == generation:
            self._pool.checked(member, ok=ok, now=now, why=why)

    async def _probe(self, address: Address) -> None:
        if self._health.path is not None:
            await self._ask(address, self._health.path)
            return
        connect = (
            asyncio.open_unix_connection(address.path)
            if address.path
            else asyncio.open_connection(address.host, address.port)
        )
        _, writer = await connect
        writer.close()

    async def _ask(self, address: Address, path: str) -> None:
        from aiohttp import ClientError, ClientOSError

        async with _session(address) as session:
            url = f"http://{address if not address.path else 'localhost'}{path}"
            try:
                async with session.get(url, allow_redirects=False) as response:
                    # The body is not read: closing the connection ends it.
                    if response.status >= 400:
                        raise CheckFailedError("failed", f"HTTP {response.status}")
            except ClientOSError as error:
                refused = isinstance(error.__cause__, ConnectionRefusedError)
                raise CheckFailedError(
                    "refused" if refused else "failed", error.strerror or str(error)
                ) from None
            except ClientError as error:
                raise CheckFailedError("failed", f"no HTTP answer: {error}") from None


def _session(address: Address) -> "ClientSession":
    import aiohttp

    connector: aiohttp.BaseConnector
    if address.path:
        connector = aiohttp.UnixConnector(address.path, force_close=True)
    else:
        connector = aiohttp.TCPConnector(force_close=True, use_dns_cache=False)
    return aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": _AGENT},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=8190,
    )
