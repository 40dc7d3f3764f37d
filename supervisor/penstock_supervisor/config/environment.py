"""What this process was started with: the only module that reads the environment.

A key is worth what the file or the command line says of it. From the environment come only what
children inherit, and where and by whom we were started.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from penstock_worker.contract import SCRUBBED

ROOT_RUN_DIR: Final = Path("/run/penstock")


def inherited_environment() -> dict[str, str]:
    """Our environment without the variables by which a supervisor configures its worker."""
    return {name: value for name, value in os.environ.items() if name not in SCRUBBED}


def sudo_caller() -> tuple[int, ...]:
    """The id of the user who has called sudo, if anybody has."""
    uid = os.environ.get("SUDO_UID", "")
    return (int(uid),) if uid.isascii() and uid.isdecimal() else ()


def default_run_dirs() -> tuple[Path, ...]:
    """Directories for the control socket when `run_dir` is not set."""
    return run_dirs_of(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR", ""))


def run_dirs_of(uid: int, runtime_dir: str) -> tuple[Path, ...]:
    """The default run directories of a user, in order of preference.

    `runtime_dir` is XDG_RUNTIME_DIR, or empty. It is ignored for root, who may have inherited
    the environment of another user.
    """
    in_tmp = Path(f"/tmp/penstock-{uid}")
    if uid == 0:
        return (ROOT_RUN_DIR, in_tmp)
    if not Path(runtime_dir).is_absolute():
        return (in_tmp,)
    return (Path(runtime_dir, "penstock"), in_tmp)


def lasting_path(path: Path) -> Path:
    """An absolute path of a file, which is good for the whole run.

    The directory where we are is named as the user came to it ($PWD). A deploy may swap a link in
    that name, and then the file behind it is the one that is meant.
    """
    if path.is_absolute():
        return path
    named = Path(os.environ.get("PWD", ""))
    with suppress(OSError):
        if named.is_absolute() and named.samefile("."):
            return named / path
    return path.absolute()
