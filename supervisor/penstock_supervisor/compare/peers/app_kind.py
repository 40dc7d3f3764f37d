"""Says what kind of application a program is: `python -m …peers.app_kind MODULE:ATTRIBUTE`.

Servers differ in what they serve, and only importing the program shows what it is. That happens
in a process of its own, because a user's module may do anything when it is imported.
"""

import subprocess  # noqa: TID251 -- before any loop runs, and waited for
import sys
from typing import Final, cast

from penstock_supervisor.compare.peers.recipe import AppKind, RecipeError
from penstock_supervisor.config.environment import inherited_environment
from penstock_worker.servers import app_loader

_TIMEOUT_S: Final = 60.0
_KINDS: Final = ("aiohttp", "asgi", "factory")


def find(app: str, directory: str) -> AppKind:
    """Import it in another process. RecipeError: it cannot be imported, or served."""
    try:
        done = subprocess.run(
            (sys.executable, "-P", "-m", "penstock_supervisor.compare.peers.app_kind", app),
            cwd=directory, env=inherited_environment(), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecipeError(f"{app} cannot be imported: {error}") from None
    kind = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or kind not in _KINDS:
        lines = done.stderr.strip().splitlines() or [f"{app} cannot be served over HTTP"]
        raise RecipeError(lines[-1])
    return cast("AppKind", kind)


def _main() -> int:
    # As the workers do it: the working directory comes first.
    sys.path.insert(0, "")
    try:
        sys.stdout.write(f"\n{app_loader.load(sys.argv[1]).kind}\n")
    except app_loader.LoadError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
