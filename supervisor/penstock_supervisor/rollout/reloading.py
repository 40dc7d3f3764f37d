"""A reload: reads the configuration anew, compares it, and asks for a roll-out to it.

Owns what is refused before anything is done: a file that is broken, a change that needs a restart,
a service that does not exist. Must not know how a roll-out goes on (`rollouts`).

A disk or a mount may not answer. Files are read in a thread that is left behind then (`blocking`):
who asked is told, the next one reads anew, and a stop of the run waits for nobody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from penstock_supervisor import blocking
from penstock_supervisor.config.change_report import lines, refused
from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.loader import ConfigError
from penstock_supervisor.config.model import Config
from penstock_supervisor.errors import (
    IS_STOPPING,
    NotNowError,
    ReloadRefused,
    UnknownServiceError,
)
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.rollouts import Rollouts
from penstock_supervisor.snapshot import ReloadAnswer

READ_S: Final = 10.0
"""For all files of a configuration."""
_UNREADABLE: Final = "the configuration cannot be read"
_LEAST_S: Final = 1.0
"""For one that had to wait for those before it. If these were slow, nothing may be wrong."""
_UNKNOWN: Final = (
    "a roll-out runs: whether addresses, names and directories can be had, nobody can say before "
    "it has ended"
)

_MOST_TOLD: Final = 4
"""Changes or problems in the line of a dry run. Who has asked is told all of them."""

_log = logging.getLogger("penstock.supervisor")


class Reloading:
    def __init__(
        self,
        read_config: Callable[[], Config],
        moved: Callable[[Config], Mapping[str, str]],
        present: Callable[[], Config],
        check: Callable[[Config], Awaitable[bool]],
        rollouts: Rollouts,
        records: RolloutRecords,
    ) -> None:
        """`read_config` reads it anew; it may block. ConfigError: it is broken. `moved`: the
        directories that lead elsewhere now, by service; it may block. `present`: with all services
        that there are, also those that are to go. `check`: opens and reads what it needs, and
        leaves nothing of that. ReloadRefused; False: not while a roll-out runs."""
        self._read_config = read_config
        self._moved, self._present, self._check = moved, present, check
        self._rollouts = rollouts
        self._records = records
        self._lock = asyncio.Lock()
        self._reading: asyncio.Future[tuple[Config, Mapping[str, str]]] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """The run ends: nobody waits for files any more."""
        self._is_cancelled = True
        if self._reading is not None:
            self._reading.cancel()

    async def request(self, services: tuple[str, ...], *, dry_run: bool) -> ReloadAnswer:
        """ReloadRefused; NotNowError; UnknownServiceError."""
        try:
            answer = await self._request(services, dry_run=dry_run)
        except (ReloadRefused, UnknownServiceError) as refusal:
            # A dry run only asks: what is in force, and since when, is as before.
            if dry_run:
                _log.info("dry run: it would be refused: %s", _in_short(refusal.problems))
            else:
                self._refused(refusal)
            raise
        if dry_run:
            _log.info("dry run: %s", _in_short(answer.changes))
        return answer

    async def _request(self, services: tuple[str, ...], *, dry_run: bool) -> ReloadAnswer:
        until = asyncio.get_running_loop().time() + READ_S
        # One at a time: who asks last has read the file last.
        async with self._lock:
            new, moved = await self._read(until)
            names = [service.name for service in new.services]
            for name in services:
                if name not in names:
                    raise UnknownServiceError(name, names)
            changes = compare(self._rollouts.goal, new)
            # What has to fit is what there will be, and what there is.
            if problems := refused(changes) or refused(compare(self._present(), new)):
                raise ReloadRefused(problems)
            if not dry_run:
                rollout, joined = self._rollouts.request(new, services, is_moved=bool(moved))
                self._records.reload_begun()
                # Also what others have asked for, and what it changes for them.
                changes = compare(rollout.base or new, new)
                told = lines(changes, changes.replaced(rollout.names, moved), moved)
                return ReloadAnswer(rollout.number, joined, told, bool(rollout.why_it_waits))
        # Names may take long to look up: nobody has to wait for that.
        told = lines(changes, changes.replaced(services, moved), moved)
        known = () if await self._check(new) else (_UNKNOWN,)
        return ReloadAnswer(None, False, (*told, *known))

    async def _read(self, until: float) -> tuple[Config, Mapping[str, str]]:
        """The configuration in the files, and its directories that lead elsewhere now."""
        if self._is_cancelled:
            raise NotNowError(IS_STOPPING)
        remaining_s = max(_LEAST_S, until - asyncio.get_running_loop().time())
        try:
            self._reading = reading = blocking.start("configuration", self._read_files)
            await asyncio.wait({reading}, timeout=remaining_s)
        except blocking.BlockedError as error:
            raise ReloadRefused((f"{_UNREADABLE}: {error}",)) from None
        finally:
            self._reading = None
        if reading.cancelled():
            raise NotNowError(IS_STOPPING)
        if not reading.done():
            reading.cancel()
            text = f"within {READ_S:g} s: a disk, or a mount, does not answer"
            raise ReloadRefused((f"{_UNREADABLE} {text}",))
        try:
            return reading.result()
        except ConfigError as error:
            raise ReloadRefused(error.problems) from None
        except Exception as error:  # noqa: BLE001
            # A fault of ours. Nothing is changed, and that is what has to be told.
            _log.exception("%s: a bug of penstock", _UNREADABLE)
            raise ReloadRefused((f"{_UNREADABLE}: a bug of penstock: {error!r}",)) from None

    def _read_files(self) -> tuple[Config, Mapping[str, str]]:
        new = self._read_config()
        return new, self._moved(new)

    def _refused(self, refusal: ReloadRefused | UnknownServiceError) -> None:
        """In the log and in the status, whoever has asked."""
        for problem in refusal.problems:
            _log.error("nothing is reloaded: %s", problem)
        # With a wrong name nothing is wrong with the configuration.
        if isinstance(refusal, ReloadRefused):
            self._records.config_read(ok=False, refusal="; ".join(refusal.problems))


def _in_short(said: Sequence[str]) -> str:
    more = len(said) - _MOST_TOLD
    return "; ".join((*said[:_MOST_TOLD], *((f"and {more} more",) if more > 0 else ())))
