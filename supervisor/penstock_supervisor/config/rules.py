"""Rules of a configuration that concern several keys, or several services.

Every rule yields `Problem`s and none raises, so one check of a file finds all problems. The
models validate single values. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from penstock_proxy.balancing.policies.choice import POLICIES
from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.config import applicability, per_proxy, tls_rules
from penstock_supervisor.config.applicability import PROGRAMS
from penstock_supervisor.config.diagnostics import Problem

if TYPE_CHECKING:
    from penstock_supervisor.config.model import Config, Service


def check_table(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems that the presence of keys shows, whatever their values are."""
    programs = [key for key in PROGRAMS if key in table]
    if not programs:
        yield Problem((), "expected one of app, command, upstreams: there is nothing to run")
    elif len(programs) > 1:
        yield Problem((), f"expected one of app, command, upstreams, not {' and '.join(programs)}")
    yield from applicability.check_table(table)
    if programs == ["upstreams"] and table["upstreams"] == []:
        yield Problem(("upstreams",), "expected at least one address")


def check_service(service: "Service") -> Iterator[Problem]:
    """Problems of one service whose single values are valid."""
    yield from _check_counts(service)
    yield from check_scheme(service)
    addresses = [upstream.address for upstream in service.upstreams]
    if len(set(addresses)) < len(addresses):
        yield Problem(("upstreams",), "an address is named twice; give it a weight instead")
    if service.listen in addresses:
        yield Problem(("upstreams",), f"{service.listen} is where the service itself listens")
    yield from _check_trusted_proxies(service)
    if service.mode != "http" and service.access_log_format == "combined":
        yield Problem(("access_log_format",), 'only with mode = "http": it is made of requests')
    yield from tls_rules.check_service(service)
    if not service.has_proxy and 0 < service.max_connections < service.workers:
        text = f"expected 0, or at least 1 for each of {service.workers} workers"
        yield Problem(("max_connections",), text)
    if service.health.slow_start and POLICIES[service.balance].ignores_slow_start:
        text = (
            f'expected another balance than "{service.balance}", '
            "which gives each client its one worker"
        )
        yield Problem(("health", "slow_start"), text)
    if service.restart.backoff > service.restart.backoff_max:
        yield Problem(("restart", "backoff"), "expected at most backoff_max")


def _check_trusted_proxies(service: "Service") -> Iterator[Problem]:
    """Trusted proxies need a header to trust: a PROXY header, or a field of a request."""
    if service.accept_proxy and not service.trusted_proxies:
        text = "expected trusted_proxies beside it: a client may claim anything"
        yield Problem(("accept_proxy",), text)
    elif service.trusted_proxies and not service.accept_proxy:
        if service.mode != "http":
            text = f'only with mode = "http" or accept_proxy: {service.mode} has no headers'
            yield Problem(("trusted_proxies",), text)
        elif service.scheme != "ports":
            text = 'only with scheme = "ports" or accept_proxy: no other adds fields to a request'
            yield Problem(("trusted_proxies",), text)


def check_scheme(service: "Service") -> Iterator[Problem]:
    """Why the scheme cannot work with this program, mode or address, and which one can."""
    scheme = service.scheme
    if service.upstreams and scheme != "ports":
        text = 'expected "ports": upstreams are run by others, and can only be connected to'
        yield Problem(("scheme",), text)
    if service.command is not None and scheme == "handoff":
        text = "expected app with handoff: a command cannot take connections from a link"
        yield Problem(("scheme",), f"{text}; ports, shared and reuseport work with any program")
    if parse_address(service.listen).path and scheme == "reuseport":
        text = "a unix socket has no port to share; ports, handoff and shared work with one"
        yield Problem(("scheme",), text)
    if service.health.path and service.command is not None and scheme in ("shared", "reuseport"):
        text = f"no single worker of a command is asked with {scheme}; with ports it is"
        yield Problem(("health", "path"), text)
    if service.accept_proxy and service.command is not None and scheme in ("shared", "reuseport"):
        text = (
            f"nobody reads the header for a command with {scheme}; "
            "the proxy does with ports, and the worker of an app"
        )
        yield Problem(("accept_proxy",), text)
    if service.socket_mode is not None and not parse_address(service.listen).path:
        yield Problem(("socket_mode",), 'only with listen = "unix:/path": a port is everybody\'s')
    if service.mode == "udp":
        yield from _check_udp(service)


def _check_udp(service: "Service") -> Iterator[Problem]:
    if service.scheme in ("ports", "handoff"):
        text = f"{service.scheme} works with connections, and udp has none; shared and reuseport do"
        yield Problem(("mode",), text)
    if parse_address(service.listen).path:
        yield Problem(("listen",), "expected host:port with udp")
    if service.health.path is not None:
        yield Problem(("health", "path"), "udp has no requests to ask with")
    if service.accept_proxy:
        yield Problem(("accept_proxy",), "expected connections: a datagram has no beginning")


def check_config(config: "Config") -> Iterator[Problem]:
    """Conflicts between services, and between them and the admin port."""
    for one, other in combinations(config.services, 2):
        prefix = ("service", other.name)
        # UDP and TCP ports are separate.
        if (one.mode == "udp") == (other.mode == "udp") and _conflict(one.listen, other.listen):
            yield Problem((*prefix, "listen"), f"{other.listen} is taken by service.{one.name}")
        first, second = one.worker_ports, other.worker_ports
        if first and second and _overlap(first, second):
            yield Problem((*prefix, "worker_ports"), f"overlaps the ports of service.{one.name}")
    listeners = {f"service.{one.name}": one.listen for one in config.services if one.mode != "udp"}
    if config.admin:
        for owner, listen in listeners.items():
            if _conflict(config.admin, listen):
                yield Problem(("admin",), f"{config.admin} is taken by {owner}")
        listeners["admin"] = config.admin
    for service in config.services:
        yield from _check_port_range(service, listeners)
    yield from _check_proxies(config)
    yield from tls_rules.check_config(config)


def _check_proxies(config: "Config") -> Iterator[Problem]:
    """Proxies must have a service to accept for, and a share of each bound."""
    proxied = [service for service in config.services if service.has_proxy]
    if config.services and not proxied and "proxies" in config.model_fields_set:
        text = 'only with a service of scheme = "ports" or "handoff": the others have no proxy'
        yield Problem(("proxies",), text)
    for service in proxied:
        for key in per_proxy.too_small(service, config.proxies):
            text = f"expected 0, or at least 1 for each of {config.proxies} proxies"
            yield Problem(("service", service.name, *key), text)


def _check_port_range(service: "Service", listeners: Mapping[str, str]) -> Iterator[Problem]:
    for owner, listen in listeners.items():
        port = parse_address(listen).port
        if service.worker_ports and _overlap(service.worker_ports, (port, port)):
            text = f"contains {port}, where {owner} listens"
            yield Problem(("service", service.name, "worker_ports"), text)


def _check_counts(service: "Service") -> Iterator[Problem]:
    workers = service.workers
    if service.weights and len(service.weights) != workers:
        text = f"expected one for each of {workers} workers, not {len(service.weights)}"
        yield Problem(("weights",), text)
    if service.worker_ports is not None:
        size = service.worker_ports.last - service.worker_ports.first + 1
        if size < workers:
            text = f"expected a port for each of {workers} workers, not {size}"
            yield Problem(("worker_ports",), text)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _conflict(one: str, other: str) -> bool:
    """One run cannot listen on both. Port 0 is a different free port each time."""
    a, b = parse_address(one), parse_address(other)
    if a.path or b.path:
        return a.path == b.path
    same_host = a.host == b.host or _is_wildcard_of(a, b) or _is_wildcard_of(b, a)
    return a.port == b.port != 0 and same_host


def _is_wildcard_of(wildcard: Address, address: Address) -> bool:
    """`wildcard` means every address of the family of `address`."""
    return wildcard.host == ("::" if ":" in address.host else "0.0.0.0")
