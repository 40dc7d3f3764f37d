"""A configuration on its way from the supervisor to a proxy: one message for each part of it.

Owns both ends of that: into which parts it is cut, and what has come of it. A part is a service, or
a few members of one, and is read in a tenth of a millisecond. So neither the number of services nor
that of members makes a turn of the loop longer, or a message longer than the channel takes. Nothing
is changed by a part: what comes last says what all of them are for (`messages`). What is wrong with
one is wrong with the whole.

Must not know: how messages are sent, and what a configuration changes. No I/O, no clock.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError

from penstock_proxy.config import ProxyConfig, ServiceConfig, Target
from penstock_proxy.messages import SERVICE, TARGETS

_TARGETS: Final = 16
"""Members of one part."""

Message = dict[str, Any]


def parts_of(config: ProxyConfig) -> Iterator[Message]:
    """What is said of a configuration before CONFIGURE or RECONFIGURE."""
    for service in config.services:
        yield from parts_of_targets(service.targets)
        own = service.model_copy(update={"targets": ()})
        yield {"cmd": SERVICE, "service": own.model_dump(mode="json")}


def parts_of_targets(targets: Sequence[Target]) -> Iterator[Message]:
    """What is said of the members of a service before SERVICE or UPSTREAMS."""
    for at in range(0, len(targets), _TARGETS):
        some = targets[at : at + _TARGETS]
        yield {"cmd": TARGETS, "targets": [one.model_dump(mode="json") for one in some]}


class ReceivedParts:
    """What has come, until it is taken. The first error stands for all of it."""

    __slots__ = ("_error", "_services", "_targets")

    def __init__(self) -> None:
        self._targets: list[Target] = []
        self._services: list[ServiceConfig] = []
        self._error: ValidationError | None = None

    def add_targets(self, targets: Iterable[object]) -> None:
        """TARGETS has come."""
        try:
            self._targets += map(Target.model_validate, targets)
        except ValidationError as error:
            self._error = self._error or error

    def add_service(self, service: object) -> None:
        """SERVICE has come: it has the members that have come before."""
        targets, self._targets = self._targets, []
        try:
            config = ServiceConfig.model_validate(service)
        except ValidationError as error:
            self._error = self._error or error
        else:
            self._services.append(config.model_copy(update={"targets": tuple(targets)}))

    def take_targets(self) -> tuple[Target, ...]:
        """The members that have come. ValidationError: one of them is none."""
        targets, self._targets = tuple(self._targets), []
        self._raise_error()
        return targets

    def take_config(self) -> ProxyConfig:
        """The services that have come. ValidationError: something is wrong with one of them."""
        services, self._services = tuple(self._services), []
        self._raise_error()
        # They are validated already, and there may be very many.
        return ProxyConfig.model_construct(services=services)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
