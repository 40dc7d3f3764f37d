"""Which release this is, and whether its data path is compiled.

Owns the name under which the project is published. The command, the packages and the metrics are
called penstock; on the index somebody else has that name. All facts are looked up when they are
asked for: a command that only prints them starts at once.

See docs/decisions/0026-published-wheels.md.
"""

from functools import cache
from importlib.util import find_spec
from typing import Final

DISTRIBUTION: Final = "penstock-lb"


@cache
def version() -> str:
    """As it was when it was asked for first: what runs does not change with what is installed."""
    from importlib.metadata import version as installed_version

    return installed_version(DISTRIBUTION)


def is_compiled() -> bool:
    """Is the data path the C extensions of a compiled wheel, and not Python's sources?"""
    spec = find_spec("penstock_proxy.net.socket_transport")
    origin = (spec and spec.origin) or ""
    return not origin.endswith(".py")


def build() -> str:
    """In words."""
    return "compiled" if is_compiled() else "pure Python"


def describe() -> str:
    """One line for people: version and build, and how to get the other build."""
    if is_compiled():
        other = f"pure Python is pip install --no-binary {DISTRIBUTION} {DISTRIBUTION}"
    else:
        other = "make wheel compiles it, for less CPU a request"
    return f"penstock {version()} ({build()}; {other})"
