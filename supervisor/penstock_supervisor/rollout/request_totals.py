"""How many requests there were, and how many of them failed: so far, or between two moments.

`observability.request_count` makes it of a snapshot and says what is counted. A roll-out keeps one
of its begin, and tells the difference at its end. No I/O, no clock.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from penstock_supervisor.snapshot import UnseenEnd

_MOST_NAMED: Final = 4
"""Processes in one line."""
_AT_BEGIN: Final = "did not answer at the beginning"


class ServiceTotals(NamedTuple):
    """Of one service. None: nobody counts that."""

    requests: int | None
    failed: int | None
    has_requests: bool = True
    """Relayed connections have none, and may fail all the same."""

    @property
    def is_uncounted(self) -> bool:
        return self.requests is None and (self.has_requests or self.failed is None)


class RequestTotals(NamedTuple):
    """Of all services."""

    by_service: Mapping[str, ServiceTotals]
    unseen_ends: Sequence[UnseenEnd] = ()
    """So far, at least the last ones."""
    silent: Sequence[str] = ()
    """Processes whose numbers are older, because they have not answered."""
    uncounted: Sequence[str] = ()
    """Of a difference: what is missing in it, and why."""

    @property
    def requests(self) -> int | None:
        """None: no service has requests that are counted."""
        return _sum([one.requests for one in self.by_service.values()])

    @property
    def failed(self) -> int | None:
        """None: nobody counts them in any service."""
        return _sum([one.failed for one in self.by_service.values()])

    @property
    def uncounted_services(self) -> tuple[str, ...]:
        """The services of which it is not known how many requests they had."""
        return tuple(name for name, one in self.by_service.items() if one.is_uncounted)

    def with_gone(self, earlier: "RequestTotals") -> "RequestTotals":
        """With the last numbers of services that are no more."""
        return self._replace(by_service={**earlier.by_service, **self.by_service})

    def since(self, before: "RequestTotals") -> "RequestTotals":
        """What was counted since `before`, of the services that are here now."""
        found = {
            name: _difference(one, before.by_service.get(name, ServiceTotals(0, 0)))
            for name, one in self.by_service.items()
        }
        return RequestTotals(found, uncounted=(*self._missing(before), *_negative(found)))

    def _missing(self, before: "RequestTotals") -> list[str]:
        """Processes of which something is not in the difference, or too much."""
        known = before.unseen_ends[-1].number if before.unseen_ends else 0
        ends = [end for end in self.unseen_ends if end.number > known]
        times = Counter(end.text for end in ends)
        said = [text if n == 1 else f"{text} {n} times" for text, n in times.items()]
        if ends and (older := ends[0].number - known - 1):
            said.append(f"{older} other processes ended likewise")
        said += [f"{name} {_AT_BEGIN}" for name in before.silent]
        return said + [
            f"{name} did not answer" for name in self.silent if name not in before.silent
        ]


def in_words(
    requests: int | None, failed: int | None, uncounted: Sequence[str], services: Sequence[str]
) -> str:
    """`requests 1203, failed 0`, and what is not among these: processes, and whole services."""
    least = "at least " if uncounted else ""
    if any(one.endswith(_AT_BEGIN) for one in uncounted):
        # What it had before may be among them.
        least = "about "
    if requests is not None:
        counted = "not counted" if failed is None else f"{least}{failed}"
        text = f"requests {least}{requests}, failed {counted}"
    elif failed is not None:
        text = f"connections failed {least}{failed}"
    else:
        return "requests not counted"
    if uncounted:
        text += f" ({_causes(uncounted)})"
    return f"{text}; not counted: {', '.join(services)}" if services else text


def _causes(uncounted: Sequence[str]) -> str:
    named, more = uncounted[:_MOST_NAMED], len(uncounted) - _MOST_NAMED
    names = ", ".join((*named, f"and {more} more")) if more > 0 else ", ".join(named)
    return f"{names}: what {'it' if len(uncounted) == 1 else 'they'} had is not known"


def _difference(now: ServiceTotals, before: ServiceTotals) -> ServiceTotals:
    return ServiceTotals(
        _less(now.requests, before.requests), _less(now.failed, before.failed), now.has_requests
    )


def _less(now: int | None, before: int | None) -> int | None:
    return None if now is None else now - (before or 0)


def _negative(found: dict[str, ServiceTotals]) -> list[str]:
    """Name the services that tell less than before, which no count of ours does, and take these
    for nothing."""
    said = []
    for name, one in found.items():
        if min(one.requests or 0, one.failed or 0) < 0:
            said.append(f"{name} says fewer than before")
            found[name] = one._replace(
                requests=None if one.requests is None else max(0, one.requests),
                failed=None if one.failed is None else max(0, one.failed),
            )
    return said


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
