"""The first look-up of names, before a run starts or a reload is applied.

Owns what is wrong with a name that is not found then. A plain name stands for one server that has
to be there: a start, or a reload, fails without it, as with nginx and HAProxy, because mostly it is
misspelt. `dns:` and `dns+srv:` name as many servers as there are, which may be none yet: a service
begins without a member, and gets some when there are some.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from penstock_supervisor.config.model import Service
from penstock_supervisor.config.upstream_address import Kind, UpstreamAddress, parse_upstream
from penstock_supervisor.errors import StartError
from penstock_supervisor.names.answers import (
    Endpoint,
    LookupFailedError,
    LookupTimeoutError,
    NotFoundError,
)
from penstock_supervisor.names.lookup import Lookups, Servers
from penstock_supervisor.names.membership import settle

Endpoints = Mapping[str, tuple[Endpoint, ...]]
"""What each upstream of a service stands for, by its address in the configuration."""

_UNKNOWN: Final = "unknown host"


def _nothing_known(_service: str, _upstream: str) -> bool:
    return False


async def look_up_all(
    lookups: Lookups,
    services: Sequence[Service],
    servers: Servers,
    is_known: Callable[[str, str], bool] = _nothing_known,
) -> dict[str, Endpoints]:
    """What the upstreams of each service stand for, side by side. `is_known(service, upstream)`:
    somebody looks it up already, and it is left out. StartError: a name is not found; all are
    named."""
    wanted = {
        service.name: [
            one.address for one in service.upstreams if not is_known(service.name, one.address)
        ]
        for service in services
        if service.upstreams
    }
    texts = list(dict.fromkeys(text for of_service in wanted.values() for text in of_service))
    found = dict(
        zip(
            texts,
            await asyncio.gather(*(_first(lookups, text, servers) for text in texts)),
            strict=True,
        )
    )
    if problems := tuple(_problems(wanted, found)):
        raise StartError("; ".join(problems))
    return {
        name: {text: one for text in of_service if isinstance(one := found[text], tuple)}
        for name, of_service in wanted.items()
    }


_First = tuple[Endpoint, ...] | LookupFailedError


async def _first(lookups: Lookups, text: str, servers: Servers) -> _First:
    upstream = parse_upstream(text)
    if upstream.kind is Kind.FIXED:
        return (Endpoint(upstream.address),)
    try:
        return settle(upstream.kind, (), await lookups.look_up(upstream, servers))
    except LookupFailedError as error:
        return error if _has_to_be_found(upstream) else ()


def _has_to_be_found(upstream: UpstreamAddress) -> bool:
    return upstream.kind is Kind.NAME


def _problems(wanted: Mapping[str, Sequence[str]], found: Mapping[str, _First]) -> Iterator[str]:
    for name, texts in wanted.items():
        reasons: dict[str, list[str]] = {}
        for text in texts:
            if isinstance(failure := found[text], LookupFailedError):
                reasons.setdefault(_why(failure), []).append(text)
        for why, unknown in reasons.items():
            yield f"service.{name}.upstreams: {', '.join(unknown)}: {why}"


def _why(failure: LookupFailedError) -> str:
    if isinstance(failure, NotFoundError):
        return _UNKNOWN
    if isinstance(failure, LookupTimeoutError):
        return str(failure)
    return f"it cannot be looked up: {failure}"
