"""Makes the peers of a comparison from their names, and finds out what is missing for them.

Everything that can be known before anything is started is said before: what is not installed,
and a program that a peer cannot run. Each is one line.
"""

import os
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Final

from penstock_supervisor.compare.peers import app_kind, catalog
from penstock_supervisor.compare.peers.peer import SBIN, Peer
from penstock_supervisor.compare.peers.recipe import Setting
from penstock_supervisor.config.model import Service

_MOST_CONNECTIONS: Final = 16384
_LEAST_CONNECTIONS: Final = 128
_RESERVED_FDS: Final = 200
_DEBIAN: Final = {"nginx": "nginx-light", "haproxy": "haproxy", "node": "nodejs"}
"""Debian's packages."""


def is_installed(kind: str, name: str) -> bool:
    """`kind`: program, or module of this interpreter."""
    return find_spec(name) is not None if kind == "module" else program(name) is not None


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=SBIN)


def missing(
    names: Sequence[str], installed: Callable[[str, str], bool] = is_installed
) -> tuple[str, ...]:
    """For each peer that cannot be run here, one line that says what to install."""
    lines = []
    for name in names:
        for kind, wanted in catalog.requirements(name):
            if not installed(kind, wanted):
                module = kind == "module"
                how = f"pip install {wanted}" if module else f"apt install {_DEBIAN[wanted]}"
                lines.append(f"{name} needs {wanted}, which is not installed here: {how}")
                break
    return tuple(lines)


def peers(
    names: Sequence[str], service: Service, proxies: int, path: str, *, access_log: bool
) -> tuple[Peer, ...]:
    """Peers that run the program of `service`. RecipeError: one of them cannot."""
    setting = example(service, proxies, access_log=access_log)
    return tuple(Peer(name, service.workers, partial(_at, setting), path) for name in names)


def example(service: Service, proxies: int, *, access_log: bool) -> Setting:
    """The program, at places that only stand for the real ones. RecipeError."""
    directory = os.path.realpath(service.directory or ".")
    return Setting(
        app=service.app or "",
        app_kind=app_kind.find(service.app, directory) if service.app else "",
        command=tuple(service.command or ()),
        directory=directory,
        env=dict(service.env),
        workers=service.workers,
        proxies=proxies,
        max_connections=_max_connections(),
        access_log=access_log,
        folder="/run/peer",
        ports=tuple(range(8000, 8001 + service.workers)),
        # A proxy of root gives up its rights, and then the private directory is not its own.
        user="root" if os.geteuid() == 0 else "",
        gunicorn_worker=_gunicorn_worker(),
    )


def show(name: str, setting: Setting) -> str:
    """The files and commands of a peer. RecipeError."""
    return catalog.text(catalog.recipe(name, setting))


def _at(setting: Setting, folder: str, ports: tuple[int, ...]) -> Setting:
    return replace(setting, folder=folder, ports=ports)


def _max_connections() -> int:
    """A relayed connection has two descriptors, and HAProxy refuses to start with too few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else (soft - _RESERVED_FDS) // 2
    return max(_LEAST_CONNECTIONS, min(_MOST_CONNECTIONS, allowed))


def _gunicorn_worker() -> str:
    if is_installed("module", "uvicorn_worker"):
        return "uvicorn_worker.UvicornWorker"
    # Its own, since version 24.
    return "asgi" if not is_installed("module", "uvicorn") else "uvicorn.workers.UvicornWorker"
