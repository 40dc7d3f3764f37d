"""The unprivileged user that a run as root gives its processes, and checks that they run as it."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

Words = tuple[str, ...]
NOBODY: Final = pwd.getpwnam("nobody")
AS_NOBODY: Final = (
    "setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "env",
)  # fmt: skip
"""env, because setpriv itself still has root's capabilities when it executes something."""
PENSTOCK: Final = (sys.executable, "-m", "penstock_supervisor")
DEMO: Final = "penstock_worker.demo:app"


def reaches(under: Words) -> bool:
    """Can the user `nobody` run the interpreter and find the packages?"""
    words = (
        *under,
        *AS_NOBODY,
        sys.executable,
        "-P",
        "-c",
        "import penstock_supervisor.supervisor",
    )
    return subprocess.run(words, cwd="/", capture_output=True, check=False).returncode == 0


def facts(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (x.partition(":") for x in text.splitlines())}


def assert_nobody(pid: int) -> None:
    found = facts(pid)
    assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4
    groups = os.getgrouplist("nobody", NOBODY.pw_gid)
    assert {int(group) for group in found["Groups"].split()} == set(groups)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[capabilities], 16) == 0, capabilities
    assert found["NoNewPrivs"] == "1"


def pids(run: Any, kind: str) -> set[int]:
    found: list[int] = run.status()["pids"][kind]
    return set(found)


def run_penstock(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((*PENSTOCK, *words), capture_output=True, text=True, check=False)
