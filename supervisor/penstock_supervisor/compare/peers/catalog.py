"""The peers that are known by name, and how each is run: its files and its commands.

A name is a server ("uvicorn"), or a proxy and a server ("nginx+uvicorn"), and may end in "/unix"
for a link over unix sockets. Each is set up as its own documentation advises for production, with
as many workers as ours, and a log that is on or off as ours is. Nothing is tuned beyond that: the
files are short, and a reader sees all of them. What belongs to one product is in `servers` and
`proxies`.

No I/O, no clock.
"""

from typing import Final

from penstock_supervisor.compare.peers import proxies, servers
from penstock_supervisor.compare.peers.recipe import Process, Recipe, RecipeError, Setting

_ALONE: Final = tuple(name for name in servers.SERVERS if name != "command")
"""Several copies of a command have no address in common without a proxy."""
NAMES: Final = (
    *_ALONE,
    *(f"{proxy}+{server}" for proxy in proxies.PROXIES for server in servers.SERVERS),
)
"""All that are known, without "/unix"."""
_UNIX: Final = "/unix"


def parse_names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Read "nginx+uvicorn,granian"; ValueError."""
    names: dict[str, None] = {}
    for text in filter(None, (part.strip() for each in texts for part in each.split(","))):
        name, unix = text.removesuffix(_UNIX), text.endswith(_UNIX)
        proxy, _, server = name.rpartition("+")
        if name not in NAMES:
            raise ValueError(f'expected {_expected()}, not "{text}"')
        if unix and not (proxy and server in servers.WITH_UNIX):
            can = " and ".join(servers.WITH_UNIX)
            raise ValueError(f'"{text}": only {can} behind a proxy have a link over unix sockets')
        names[text] = None
    return tuple(names)


def _expected() -> str:
    before = " or ".join(f"{name}+" for name in proxies.PROXIES)
    return f"{', '.join(_ALONE)}, or one of them or command behind {before}"


def recipe(name: str, setting: Setting) -> Recipe:
    """How the peer is run. RecipeError: it cannot run this program."""
    proxy, _, server = name.removesuffix(_UNIX).rpartition("+")
    try:
        if not proxy:
            address = f"127.0.0.1:{setting.ports[0]}"
            return Recipe(address, {}, tuple(servers.processes(server, setting, [address])))
        links = _links(server, setting, unix=name.endswith(_UNIX))
        front = proxies.front(proxy, setting, links)
        processes: tuple[Process, ...] = (
            *servers.processes(server, setting, links), *front.processes,
        )  # fmt: skip
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from None
    return Recipe(front.address, front.files, processes)


def _links(server: str, setting: Setting, *, unix: bool) -> list[str]:
    """The addresses between proxy and server: one for each worker, or one for all."""
    count = 1 if server in servers.ONE_ADDRESS else setting.workers
    if unix:
        return [f"unix:{setting.folder}/{number}" for number in range(count)]
    return [f"127.0.0.1:{port}" for port in setting.ports[1 : count + 1]]


def requirements(name: str) -> tuple[tuple[str, str], ...]:
    """What must be installed: ("program", "nginx") or ("module", "uvicorn")."""
    proxy, _, server = name.removesuffix(_UNIX).rpartition("+")
    needed = [("program", proxy)] if proxy else []
    return (*needed, *servers.REQUIREMENTS[server])


def text(recipe: Recipe) -> str:
    """The files and the commands, for people."""
    parts = [f"# {name}\n{content.rstrip()}" for name, content in recipe.files.items()]
    parts += [f"$ {process.text}" for process in recipe.processes]
    return "\n\n".join(parts) + "\n"
