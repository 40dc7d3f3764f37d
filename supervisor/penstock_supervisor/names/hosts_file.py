"""The table of names of this machine, /etc/hosts (hosts(5)).

It comes before any name server, as in nsswitch.conf(5) nearly everywhere: `localhost` and the
names that a container runtime writes are there and nowhere else. Owns its grammar. Must not know
who asks.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Final

PATH: Final = Path("/etc/hosts")
_MAX_BYTES: Final = 16 << 20
"""Lists of blocked names have some MiB."""


def read(path: Path = PATH) -> str:
    """What is in the file, in small letters: case does not matter (RFC 4343). Empty if there is
    none. Blocks."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").lower()
    except OSError:
        return ""


def addresses(table: str, name: str) -> tuple[str, ...]:
    """All addresses of a name, in their order, each once. `table` is what `read` returns."""
    wanted = name.lower().removesuffix(".")
    # Most names are in no table, and a table may be large.
    if wanted not in table:
        return ()
    found: dict[str, None] = {}
    for line in table.splitlines():
        words = line.partition("#")[0].split()
        if wanted in (word.removesuffix(".") for word in words[1:]):
            try:
                found[str(ip_address(words[0]))] = None
            except ValueError:
                continue
    return tuple(found)
