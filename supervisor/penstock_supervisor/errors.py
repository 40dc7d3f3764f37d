"""The errors that a person reads: one that ends a run, and those of a request to a run.

The text says what failed and where ("cannot listen on 127.0.0.1:80 (service.web.listen):
permission denied ..."). The command line puts its own name in front of it. It exits with 1; after
a `ReloadRefused` with 2, because the configuration is what has to be corrected.
"""

from collections.abc import Iterable
from typing import Final

STILL_STARTS: Final = "the run still starts: ask again when penstock status says that it is ready"
IS_STOPPING: Final = "the run is being stopped, and begins nothing new"


class StartError(Exception):
    """A run cannot start or continue. The text is one line."""


class ReloadRefused(Exception):  # noqa: N818 — nothing is wrong with the run
    """A reload was not begun, and nothing is changed. One line for each problem."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NotNowError(Exception):
    """The run cannot do that now, because it starts or stops. The text is one line: which of both,
    and what to do."""


class UnknownServiceError(KeyError):
    """There is no service of that name. The text is one line, and names those that exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.problems = (f'there is no service "{name}", only {", ".join(sorted(known))}',)

    def __str__(self) -> str:
        return self.problems[0]
