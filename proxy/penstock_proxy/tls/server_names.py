"""Something for each name of a server that a TLS client can ask for.

Owns how names are compared, once for certificates and for routes: without case, exact before
wildcard, and a wildcard stands for one label (RFC 9525 §6.3). No I/O, no clock.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class ByName(Generic[T]):
    """Names in lower case, "*.example.org" among them; the first of a name counts."""

    __slots__ = ("_known", "_otherwise")

    def __init__(self, known: Iterable[tuple[str, T]], otherwise: T) -> None:
        self._known: dict[str, T] = {}
        for name, what in known:
            self._known.setdefault(name, what)
        self._otherwise = otherwise

    def of(self, name: str) -> T:
        """For a name in lower case; what there is for others, if it is empty or not known."""
        known = self._known
        exact = known.get(name)
        if exact is not None:
            return exact
        return known.get(f"*.{name.partition('.')[2]}", self._otherwise)
