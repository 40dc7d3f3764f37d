"""What a roll-out works with: protocols of its parts, and what one leaves to the next.

Owns these words alone. The parts are `reconfiguration`, `versions`, and `rollout_measurements` of
the observability; tests have their own.
"""

from asyncio import AbstractEventLoop
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, Protocol

from penstock_supervisor.children.plan import Slot
from penstock_supervisor.config.model import Config
from penstock_supervisor.rollout.canary import Judgement
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.removals import Removals
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rollout.request_totals import RequestTotals


class Reconfiguration(Protocol):
    """Brings a run to another configuration, all but the processes of its workers."""

    async def prepare(self, new: Config) -> Any:
        """ReloadRefused: it cannot be done, and nothing is changed."""

    async def apply(self, prepared: Any, names: Collection[str]) -> None:
        """`names`: the services whose workers are replaced in any case. ReloadRefused: a proxy
        cannot do it, or a worker that stays is not well by it; it has to be reverted."""

    async def finish(self, prepared: Any) -> None:
        """After the workers of all services that stay."""

    async def leave(self, prepared: Any) -> None:
        """In place of that: the next change goes on from here."""

    async def revert(self, prepared: Any) -> None:
        """Back to what was before it, and before the changes that were left to it."""


class Versions(Protocol):
    """Which version of its program a slot is to have."""

    @property
    def in_force(self) -> Any:
        """The version that new processes of a roll-out are of."""

    def go_back_to(self, version: Any) -> None:
        """From now on these are of a version that was in force before."""

    def describe(self, new: Config, names: Collection[str]) -> tuple[str, ...]:
        """What a roll-out to it changes and leaves alone, a line each."""

    def moved_since(self, before: Any) -> Collection[str]:
        """The services whose programs are started elsewhere than by the version `before`."""

    def targets(self, before: Any, names: Collection[str]) -> list[Slot]:
        """The slots that have to be added, replaced or removed, in this order, to come from
        `before` to the version in force. The workers of the services in `names` in any case."""

    def is_wanted(self, slot: Slot) -> bool:
        """Has the version in force such a slot?"""

    def leftover(self) -> list[Slot]:
        """The slots of services that are no more in force."""

    def differs(self, slot: Slot) -> bool:
        """Is its process another one than new processes of a roll-out are?"""

    def age_s(self, slot: Slot) -> float | None:
        """For how long its present process has run; None: it has none."""

    def down(self) -> list[str]:
        """The services in force that have workers, none of which is ready."""

    def canaries(self, targets: Iterable[Slot]) -> dict[Slot, float]:
        """The slots that go first and are compared with the others, and for how long."""


class Measurements(Protocol):
    """What is measured of a roll-out."""

    async def requests(self) -> RequestTotals:
        """All requests so far."""

    async def sample(self) -> Any:
        """What every worker has counted so far."""

    def judge(self, before: Any, now: Any, service: str, member: int, *, early: bool) -> Judgement:
        """Compare a worker with the others of its service, by what was counted since `before`.
        `early`: its time is not over."""


class Unfinished(NamedTuple):
    """What a roll-out has left to the next one."""

    before: Any
    """The version that was in force before it."""
    prepared: Any
    changed: tuple[Slot, ...]
    mixed: frozenset[str] = frozenset()
    """The services of which some workers may have other files than the rest, in the same place:
    going back does not bring the old ones back."""
    begun_at: float = 0.0
    """When the first one began that was left."""


class RolloutParts(NamedTuple):
    loop: AbstractEventLoop
    replacements: Replacements
    versions: Versions
    reconfiguration: Reconfiguration
    measurements: Measurements
    condition: Condition
    removals: Removals
