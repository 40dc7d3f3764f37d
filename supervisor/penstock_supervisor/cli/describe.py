"""Describes a configuration in a few words, for `check` and the banner. No I/O, no clock."""

from shlex import join

from penstock_supervisor.config.loader import Config, Service


def describe_config(config: Config) -> str:
    """One line: every service, and the admin port."""
    services = "; ".join(
        f"{service.name} on {service.listen}, {describe_service(service, config.proxies)}"
        for service in config.services
    )
    return f"{services}; {f'admin on {config.admin}' if config.admin else 'no admin port'}"


def describe_service(service: Service, proxies: int = 1) -> str:
    """`2 workers of pkg.mod:app (handoff, http, round_robin)`.

    The default scheme `ports` and a single proxy are not mentioned.
    """
    scheme = () if service.scheme == "ports" else (service.scheme,)
    policy = (service.balance,) if service.has_proxy else ()
    several = (f"{proxies} proxies",) if policy and proxies > 1 else ()
    properties = f"({', '.join((*scheme, service.mode, *policy, *several))})"
    if service.upstreams:
        count = len(service.upstreams)
        return f"{count} upstream{'s' * (count != 1)} {properties}"
    program = service.app or join(service.command or ())
    count = service.workers
    return f"{count} worker{'s' * (count != 1)} of {program} {properties}"
