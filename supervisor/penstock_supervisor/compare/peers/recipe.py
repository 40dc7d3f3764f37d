"""What it takes to run a peer: files, processes, an address. Plain values, without I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from shlex import join
from typing import Literal, NamedTuple

AppKind = Literal["aiohttp", "asgi", "factory", ""]


class RecipeError(Exception):
    """The peer cannot run this program. One line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The program, and where it is run."""

    app: str = ""
    """"module:attribute"; "" for a command."""
    app_kind: AppKind = ""
    command: tuple[str, ...] = ()
    directory: str
    """Where the program is imported or started."""
    env: Mapping[str, str] = field(default_factory=dict)
    workers: int
    proxies: int = 1
    max_connections: int = 4096
    """Of a proxy: what its descriptors allow."""
    access_log: bool = False
    folder: str
    """A private directory for files and sockets."""
    ports: tuple[int, ...]
    """Free ones: that of the clients, and one for each worker."""
    user: str = ""
    """Whose the workers of a proxy have to be; "" if it has no choice."""
    gunicorn_worker: str = "uvicorn_worker.UvicornWorker"
    """gunicorn's worker class for ASGI."""


class Process(NamedTuple):
    """One command of a peer, and its processes."""

    role: Literal["proxy", "workers"]
    argv: tuple[str, ...]
    directory: str
    env: Mapping[str, str]

    @property
    def text(self) -> str:
        # The program's own variables are not shown: secrets live in variables.
        variables = "".join(f"{key}={self.env[key]} " for key in ("PORT",) if key in self.env)
        return f"{variables}{join(self.argv)}"


class Recipe(NamedTuple):
    address: str
    """Where clients connect."""
    files: Mapping[str, str]
    """Their contents by name, in the private directory."""
    processes: tuple[Process, ...]
    """In the order in which they are started."""
