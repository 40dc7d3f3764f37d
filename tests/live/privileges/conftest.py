"""Folders that every user can read, and a file system view in which no other user can write.

The interpreter may be in a home directory that is closed to other users. Then the run gets a
file system view of its own, in which that home shows what the run needs.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.live.unprivileged import (
    Words,
    reaches,
)

import penstock_proxy
import penstock_supervisor
import penstock_worker


@pytest.fixture(scope="module")
def commons() -> Iterator[Path]:
    """A directory that everybody can look into; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(commons: Path, request: pytest.FixtureRequest) -> Path:
    made = Path(tempfile.mkdtemp(dir=commons))
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def under(commons: Path) -> Words:
    """The command prefix with which the user `nobody` can reach the interpreter."""
    if reaches(()):
        return ()
    packages = (penstock_proxy, penstock_supervisor, penstock_worker)
    parts = [Path(one.__file__ or "") for one in packages]
    parts += [Path(sys.executable), Path(sys.executable).resolve(), Path(os.__file__)]
    parts += [Path(sysconfig.get_path("purelib"))]
    shown = set()
    for part in parts:
        for up in reversed(part.parents):
            if not up.stat().st_mode & 0o001:
                shown.add((up, part.relative_to(up).parts[0]))
                break
    # In a mount namespace of its own, which goes with its last process.
    lines = ["set -e"]
    for number, (up, name) in enumerate(sorted(shown)):
        stage = f"{commons}/{number}"
        lines += [
            f"mkdir -p {stage}",
            f"mount -t tmpfs -o mode=755 tmpfs {stage}",
            f"mkdir {stage}/{name}",
            f"mount --bind {up}/{name} {stage}/{name}",
            f"mount --move {stage} {up}",
        ]
    script = commons / "view"
    script.write_text("\n".join([*lines, 'exec "$@"', ""]))
    words = ("unshare", "--mount", "sh", str(script))
    if not reaches(words):
        pytest.skip("the user nobody cannot reach the interpreter here")
    return words
