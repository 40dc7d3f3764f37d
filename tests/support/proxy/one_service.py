"""The services of a process that has only one, for tests of commands."""

from collections.abc import Iterator

from penstock_proxy.runtime.service import Service


class OneService:
    """As `runtime.services.Services`, as far as commands about workers need it."""

    def __init__(self, service: Service) -> None:
        self.by_name = {service.config.name: service}

    def named(self, name: str) -> Iterator[Service]:
        if name in self.by_name:
            yield self.by_name[name]
