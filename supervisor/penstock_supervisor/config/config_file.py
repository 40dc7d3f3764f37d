"""Reads a configuration file: its tables, before anything in them is checked.

Commands about a run that was started with a file need only its run_dir. They start at once,
because nothing here imports the tables' models, and they work when the file is broken.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from penstock_supervisor.config import file_access

MAX_FILE: Final = 1 << 20
"""Bytes of a configuration file. A thousand services have less."""


class ConfigError(Exception):
    """The configuration cannot be used: all problems, one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_table(path: Path, read: Callable[[Path, int], bytes]) -> dict[str, Any]:
    """The file as TOML has it; `read` is one of `file_access`. ConfigError. Blocks."""
    try:
        return tomllib.loads(read(path, MAX_FILE).decode())
    except file_access.UnusableFileError as error:
        raise ConfigError((f"{path}: {error}",)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: byte {error.start}: expected UTF-8 text",)) from error
    except RecursionError as error:
        raise ConfigError((f"{path}: nested too deeply",)) from error
    except ValueError as error:
        # Before Python 3.14 tomllib gives the position only as a part of its message.
        match = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", str(error))
        text = f"{match[2]}: {match[1]}" if match else str(error)
        raise ConfigError((f"{path}: {text}",)) from error


def run_dir_of(path: Path) -> tuple[str | None, str]:
    """The run_dir in a file, and why the file cannot be read, or empty.

    For commands about a run that was started with this file. It may be broken or gone since.
    """
    try:
        table = read_table(path, file_access.read_regular)
    except ConfigError as error:
        return _find_run_dir(path), error.problems[0]
    value = table.get("run_dir")
    return (value if isinstance(value, str) else None), ""


def _find_run_dir(path: Path) -> str | None:
    """The run_dir in a file that is no TOML: before the first table, in a line of its own."""
    try:
        text = file_access.read_regular(path, MAX_FILE).decode(errors="replace")
    except file_access.UnusableFileError:
        return None
    top = re.split(r"(?m)^\s*\[", text, maxsplit=1)[0]
    match = re.search(r"""(?m)^\s*run_dir\s*=\s*(?:"([^"\\\n]*)"|'([^'\n]*)')""", top)
    return None if match is None else match[1] or match[2] or ""
