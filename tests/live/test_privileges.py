"""Started as root, only the supervisor stays root; and nobody else gets at what is its own.

What fronts and workers run as is read from /proc, where the kernel says it.

The interpreter of whoever runs these tests may be in a home that is closed to others. Then
the run gets a view of the file system of its own, in which that home shows what it needs.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

import penstock_proxy
import penstock_supervisor
import penstock_worker

pytestmark = pytest.mark.root

Words = tuple[str, ...]
NOBODY: Final = pwd.getpwnam("nobody")
AS_NOBODY: Final = (
    "setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups", "env",
)  # fmt: skip
"""env, because setpriv itself still has root's capabilities when it executes something."""
PENSTOCK: Final = (sys.executable, "-m", "penstock_supervisor")
DEMO: Final = "penstock_worker.demo:app"
SCHEMES: Final = ("ports", "handoff", "shared", "reuseport")
PROGRAM: Final = """
import os
from pathlib import Path
from aiohttp import web

async def about(request):
    secret = Path(os.environ["SECRET"])
    try:
        found = secret.read_text()
    except OSError as error:
        found = error.strerror
    names = ("HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR")
    return web.json_response({"secret": found, **{name: os.environ.get(name) for name in names}})

app = web.Application()
app.router.add_get("/", about)
"""


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


def reaches(under: Words) -> bool:
    """Could nobody run the interpreter and find the packages?"""
    words = (*under, *AS_NOBODY, sys.executable, "-P", "-c", "import penstock_supervisor.runner")
    return subprocess.run(words, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def under(commons: Path) -> Words:
    """What a run has to be started with so that nobody can reach the interpreter."""
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
        pytest.skip("nobody can reach the interpreter here")
    return words


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


def low_port() -> int:
    """One below 1024 that is free just now."""
    for port in range(1023, 600, -1):
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def program(folder: Path) -> None:
    (folder / "about.py").write_text(PROGRAM)
    secret = folder / "secret"
    secret.write_text("root's own")
    secret.chmod(0o600)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_but_the_supervisor_are_somebody_without_any_privilege(
    penstock: Any, folder: Path, under: Words, scheme: str
) -> None:
    program(folder)
    fronts = 2 if scheme in ("ports", "handoff") else 0
    run = penstock(
        "--user", "nobody", *(("--fronts", "2") if fronts else ()),
        folder=folder, under=under, app="about:app", scheme=scheme, access_log="./access.log",
        listen=f"127.0.0.1:{low_port()}", env={"SECRET": str(folder / "secret")},
    )  # fmt: skip
    children = run.look()
    assert len(children) == 1 + 2 + fronts
    for child in children:
        assert_nobody(child.pid)
    assert facts(run.process.pid)["Uid"].split() == ["0"] * 4
    about = json.loads(run.get("/")[1])
    assert about.pop("secret") == "Permission denied"
    assert about == {
        "HOME": NOBODY.pw_dir, "USER": "nobody", "LOGNAME": "nobody", "XDG_RUNTIME_DIR": None,
    }  # fmt: skip
    log = folder / "access.log"
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (NOBODY.pw_uid, 0o640)
    run.until(lambda: log.stat().st_size, "a line")
    log.rename(folder / "access.log.1")
    run.process.send_signal(signal.SIGUSR1)
    run.until(log.exists, "a new log")
    assert run.get("/")[0] == 200
    run.until(lambda: log.stat().st_size, "a line in the new log")
    assert log.stat().st_uid == NOBODY.pw_uid
