"""How many descriptors the supervisor needs for a configuration.

Counted before anything is opened, so that a run that cannot have them says so, and a reload that
would need more than there are is refused as a whole.
"""

from typing import Final

from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.config.upstream_address import Kind, parse_upstream
from penstock_supervisor.names import name_servers
from penstock_supervisor.process.socket_activation import MIN_HIGH_FD

_FIXED_FDS: Final = 24
"""Standard streams, the event loop, the guardian, the admin port, the control socket."""
_CHILD_FDS: Final = 5
"""Its pidfd, its channel and two pipes; one to spare."""
_NAMES_FDS: Final = name_servers.AT_ONCE
"""Questions about the names of upstreams."""
_HIGH_FDS: Final = 6
"""The copies of a worker's sockets that are open while it is started."""


def descriptors_needed(config: Config) -> int:
    """How many it has open at the most, with some to spare."""
    proxies = _proxies(config)
    count = _FIXED_FDS + _CHILD_FDS * proxies + _names(config)
    count += sum(_of_service(service, proxies) for service in config.services)
    return max(count, MIN_HIGH_FD + _HIGH_FDS + proxies)


def needed_for_change(old: Config, new: Config) -> int:
    """How many it has open at the most while one configuration takes the place of the other.

    Workers that go drain beside those that come, and both addresses of a service are open.
    """
    proxies = max(_proxies(old), _proxies(new))
    count = _FIXED_FDS + _CHILD_FDS * proxies + _names(new)
    before = {service.name: service for service in old.services}
    for service in new.services:
        count += _of_service(service, proxies)
        if (same := before.pop(service.name, None)) is not None:
            more_workers = max(0, same.workers - service.workers)
            count += _listeners(same, proxies) + more_workers * _worker(same, proxies)
    count += sum(_of_service(service, proxies) for service in before.values())
    return max(count, MIN_HIGH_FD + _HIGH_FDS + proxies)


def _names(config: Config) -> int:
    upstreams = (one for service in config.services for one in service.upstreams)
    has_names = any(parse_upstream(one.address).kind is not Kind.FIXED for one in upstreams)
    return _NAMES_FDS if has_names else 0


def _proxies(config: Config) -> int:
    return config.proxies if any(service.has_proxy for service in config.services) else 0


def _of_service(service: Service, proxies: int) -> int:
    workers = service.workers if service.has_program else 0
    return _listeners(service, proxies) + workers * _worker(service, proxies)


def _listeners(service: Service, proxies: int) -> int:
    return service.workers if service.scheme == "reuseport" else max(1, proxies)


def _worker(service: Service, proxies: int) -> int:
    return _CHILD_FDS + (2 * proxies if service.scheme == "handoff" else 0)
