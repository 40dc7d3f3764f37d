"""Where programs are started: the configured directories, with their links resolved.

Owns the resolution. It is done when a configuration is read, and never later: a worker that ends
is started again in the release that it came from, even if a deploy has put another release behind
the link meanwhile. The next reload resolves the links anew, and that is how a release comes in.

A service without `directory` is started in the supervisor's own. If the shell came there over a
link, only $PWD knows the link, as with gunicorn: so its path is used, if it leads to the directory
that we are in.

A mount under one may hang. So it is looked at in a thread before a worker is started there: what
hangs then is this start, and nothing else.

Must not know which workers run.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from penstock_supervisor import blocking
from penstock_supervisor.config.file_access import why_no_directory
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.process.spawn import SpawnError

LOOK_S: Final = 10.0
"""For a directory on a disk that may not answer; or half of the time that a start has."""

_Paths = tuple[str, str | None]
"""Where a worker is to be started, and what is configured for that; None: see `configured`."""


class Directories:
    """Made once for a run, in the directory that it is started in."""

    def __init__(self, pwd: str | None) -> None:
        """`pwd`: the variable of that name, which a shell sets."""
        self._own = _own_directory(pwd)
        """The path of the supervisor's own; None: it is deleted."""
        self._looks: dict[_Paths, asyncio.Future[str]] = {}
        """Under way, and not for too long."""

    def resolve(self, config: Config) -> dict[str, str]:
        """The directory of each service that has a program. StartError: the supervisor's own one
        is needed, and is deleted."""
        found = {}
        for service in _with_program(config):
            path = self.configured(service)
            if path is None:
                raise StartError(
                    f"service.{service.name}.directory: the directory that this was started in is "
                    "deleted; name another one, or change to one that exists"
                )
            found[service.name] = os.path.realpath(path)
        return found

    def configured(self, service: Service) -> str | None:
        """The path as it is configured, without a link resolved. None: see `resolve`."""
        if service.directory is not None and Path(service.directory).is_absolute():
            return service.directory
        if self._own is None:
            return None
        return str(Path(self._own, service.directory or "."))

    async def look_for(self, path: str, service: Service) -> str:
        """Where a worker is started that has this directory: in another one if that is gone, and
        the configured path leads there. SpawnError: the disk does not answer."""
        seconds = min(LOOK_S, service.timeouts.start / 2)
        key = path, self.configured(service)
        try:
            look = self._look(key)
            await asyncio.wait({look}, timeout=seconds)
            if look.done():
                return look.result()
            # It may hang for ever, and the disk be well again: who comes next looks anew.
            self._forget(key, look)
            error = f"no answer within {seconds:g} s"
        except blocking.BlockedError as blocked:
            error = str(blocked)
        why = f'"{path}": {error}: a disk, or a mount, does not answer'
        raise SpawnError("directory", why, temporary=True)

    def _look(self, key: _Paths) -> "asyncio.Future[str]":
        """All workers of a service start at once: they share a look. A disk that hangs has threads
        of a kind of its own, and takes none of the others'."""
        if (look := self._looks.get(key)) is None:
            look = blocking.start(f"start directory {key[0]}", _present, *key)
            self._looks[key] = look
            look.add_done_callback(partial(self._forget, key))
        return look

    def _forget(self, key: _Paths, look: "asyncio.Future[str]") -> None:
        if self._looks.get(key) is look:
            del self._looks[key]


def _present(path: str, configured: str | None) -> str:
    if not why_no_directory(path):
        return path
    now = path if configured is None else os.path.realpath(configured)
    # Without any, the start fails, and says why.
    return path if why_no_directory(now) else now


def problems(directories: Mapping[str, str], services: Sequence[Service]) -> Iterator[str]:
    """Directories that nothing can be started in, each as one line."""
    configured = {service.name: service.directory for service in services}
    for name, path in directories.items():
        if why := why_no_directory(path):
            shown = configured.get(name) or path
            yield f'service.{name}.directory: "{shown}": {why}'


def _with_program(config: Config) -> Iterator[Service]:
    return (service for service in config.services if service.has_program)


def _own_directory(pwd: str | None) -> str | None:
    try:
        here = Path.cwd()
    except OSError:
        return None
    if pwd and Path(pwd).is_absolute():
        try:
            if os.path.samestat(os.stat(pwd), here.stat()):  # noqa: PTH116 — samestat takes both
                return pwd
        except OSError:
            pass
    return str(here)
