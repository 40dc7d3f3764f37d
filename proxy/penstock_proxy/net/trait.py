"""The mark of a class that has only methods, and is a base beside another one.

Owns no code. Compiled, a call of such a base's method finds it in a table; a call through a
`typing.Protocol` looks the name up, which takes five times as long (77 ns and 15, measured).
In the sources the mark does nothing. Not compiled itself: there the mark has to be a name that is
imported.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mypy_extensions import trait as trait
else:
    C = TypeVar("C", bound=type)

    def trait(cls: C) -> C:
        """Mark a class."""
        return cls
