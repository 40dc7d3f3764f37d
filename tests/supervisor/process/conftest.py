"""A guardian for the processes of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock_supervisor.process.reaper import Guardian


@pytest.fixture
async def guardian() -> AsyncIterator[Guardian]:
    with closing(Guardian(asyncio.get_running_loop())) as guardian_:
        yield guardian_


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").write_text("just text\n")
    (tmp_path / "data").chmod(0o755)
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "orphan").chmod(0o755)
    return tmp_path
