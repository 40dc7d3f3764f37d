"""A map from server names, exact or with a wildcard, to values.

Owns: how names are compared, for certificates and for routes alike. Case does not count, an
exact name comes before a wildcard, and a wildcard stands for one label (RFC 9525 §6.3). No I/O,
no clock.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class ServerNameMap(Generic[T]):
    """By name in lower case, also "*.example.org". If a name comes twice, the first one counts."""

    __slots__ = ("_by_name", "_default")

    def __init__(self, by_name: Iterable[tuple[str, T]], default: T) -> None:
        self._by_name: dict[str, T] = {}
        self._default = default
        self.add(by_name)

    def add(self, by_name: Iterable[tuple[str, T]]) -> None:
        """These come after those that are there."""
        for name, value in by_name:
            self._by_name.setdefault(name, value)

    def lookup(self, name: str) -> T:
        """The value for a name in lower case; the default if the name is empty or not known."""
        by_name = self._by_name
        exact = by_name.get(name)
        if exact is not None:
            return exact
        return by_name.get(f"*.{name.partition('.')[2]}", self._default)
