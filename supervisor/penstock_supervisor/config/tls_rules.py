"""What the keys of TLS must agree on: within a service, and between one that routes by name
and those that it names.

Like `rules`, whose part this is, it yields `Problem`s and never raises. Whether the files can
be used is not said here (`certificates`). No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from penstock_proxy.net.address import parse_address
from penstock_supervisor.config.diagnostics import Problem, meant

if TYPE_CHECKING:
    from penstock_supervisor.config.model import Config, Service, Tls


def of_service(service: "Service") -> Iterator[Problem]:
    """One service."""
    yield from _halves(service.tls)
    if not service.sni:
        return
    if service.mode == "http" and not service.tls.files:
        text = 'only with mode = "tcp", or with tls: who speaks plain HTTP asks for no name first'
        yield Problem(("sni",), text)
    if parse_address(service.listen).path:
        yield Problem(("sni",), "only with host:port: to a unix socket nobody says which name")


def _halves(tls: "Tls") -> Iterator[Problem]:
    """A half of what TLS needs."""
    for one, other in (("cert", "key"), ("key", "cert")):
        if getattr(tls, one) is not None and getattr(tls, other) is None:
            yield Problem(("tls", other), f"missing: {one} is nothing without it")
    if tls.certificates and (tls.cert or tls.key):
        yield Problem(("tls", "certificates"), "expected either cert and key or certificates")
    elif tls.model_fields_set and not (tls.files or tls.cert or tls.key):
        yield Problem(("tls",), "expected cert and key, or certificates")
    if tls.client_certificates != "off" and tls.client_ca is None:
        text = f'missing: with client_certificates = "{tls.client_certificates}" nobody else knows'
        yield Problem(("tls", "client_ca"), f"{text} which are good")
    if tls.client_certificates == "off" and tls.client_ca is not None:
        text = 'does nothing without client_certificates = "optional" or "required"'
        yield Problem(("tls", "client_ca"), text)


def of_config(config: "Config") -> Iterator[Problem]:
    """Services that are named by others."""
    known = {service.name: service for service in config.services}
    for service in config.services:
        for name, other in service.sni.items():
            for text in _unfit(service, other, known):
                yield Problem(("service", service.name, "sni", name), text)


def _unfit(service: "Service", other: str, known: Mapping[str, "Service"]) -> Iterator[str]:
    place = known.get(other)
    if place is None:
        yield f"there is no service.{other}{meant(other, known)}"
    elif place is service:
        yield "is this service itself, to which all other names go anyway"
    elif place.scheme != "ports":
        yield f'expected a service with scheme = "ports", and service.{other} has "{place.scheme}"'
    elif place.mode != "tcp" and not place.tls.files:
        yield f"service.{other} speaks plain HTTP: expected one with tls, or of mode tcp"
    elif place.sni:
        yield f"service.{other} asks for names itself"
