"""Configuration files with one service, and the problems in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock_supervisor.config.loader import ConfigError, Service, load

Write = Callable[[str], Path]


WEB = """
[service.web]
listen = "127.0.0.1:8000"
"""
APP = f'{WEB}app = "pkg.mod:app"\n'


def service(path: Path, **overrides: Any) -> Service:
    (only,) = load(path, overrides).services
    return only


def problems_of(path: Path | None, **overrides: Any) -> list[str]:
    """Every problem, without the file's name."""
    with pytest.raises(ConfigError) as failure:
        load(path, overrides)
    return [problem.removeprefix(f"{path}: ") for problem in failure.value.problems]
