"""An event loop that is over, for a channel that still has something to send.

A program may exit after its loop was closed, and a closed loop raises an error at whatever it is
asked. Owns the few calls that a channel makes of a loop: here they do nothing.
"""

from typing import Any


class _Cancelled:
    def cancel(self) -> None: ...


class ClosedLoop:
    """Calls nobody back."""

    def add_reader(self, *_: Any) -> None: ...
    def add_writer(self, *_: Any) -> None: ...
    def remove_reader(self, *_: Any) -> None: ...
    def remove_writer(self, *_: Any) -> None: ...

    def call_soon(self, *_: Any) -> _Cancelled:
        return _Cancelled()

    def call_later(self, *_: Any) -> _Cancelled:
        return _Cancelled()

    def is_closed(self) -> bool:
        return False
