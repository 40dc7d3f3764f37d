"""Rules for the TLS keys: within one service, and between an SNI router and its targets.

A part of `rules`, so it yields `Problem`s and never raises. Whether the files can be used is
checked elsewhere (`certificates`). No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from penstock_proxy.net.address import parse_address
from penstock_supervisor.config.diagnostics import Problem, suggestion

if TYPE_CHECKING:
    from penstock_supervisor.config.model import Config, Service, Tls


def check_service(service: "Service") -> Iterator[Problem]:
    """The TLS keys of one service."""
    yield from _check_files(service.tls)
    if not service.sni:
        return
    if service.mode == "http" and not service.tls.files:
        text = 'only with mode = "tcp", or with tls: who speaks plain HTTP asks for no name first'
        yield Problem(("sni",), text)
    if parse_address(service.listen).path:
        yield Problem(("sni",), "only with host:port: a client of a unix socket names no server")


def _check_files(tls: "Tls") -> Iterator[Problem]:
    """Keys that need each other, or exclude each other."""
    for given, needed in (("cert", "key"), ("key", "cert")):
        if getattr(tls, given) is not None and getattr(tls, needed) is None:
            yield Problem(("tls", needed), f"missing: {given} is nothing without it")
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


def check_config(config: "Config") -> Iterator[Problem]:
    """Services that are targets of SNI routes."""
    services = {service.name: service for service in config.services}
    for service in config.services:
        for name, other in service.sni.items():
            for text in _check_route(service, other, services):
                yield Problem(("service", service.name, "sni", name), text)


def _check_route(
    service: "Service", other: str, services: Mapping[str, "Service"]
) -> Iterator[str]:
    target = services.get(other)
    if target is None:
        yield f"there is no service.{other}{suggestion(other, services)}"
    elif target is service:
        yield "is this service itself, to which all other names go anyway"
    elif target.scheme != "ports":
        yield f'expected a service with scheme = "ports", and service.{other} has "{target.scheme}"'
    elif target.mode != "tcp" and not target.tls.files:
        yield f"service.{other} speaks plain HTTP: expected one with tls, or of mode tcp"
    elif target.sni:
        yield f"service.{other} asks for names itself"
