"""Started as root, only the supervisor stays root.

The tests read the users and privileges of proxies and workers from /proc.

Covers `process/privileges`.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.live.unprivileged import (
    AS_NOBODY,
    DEMO,
    NOBODY,
    PENSTOCK,
    Words,
    assert_nobody,
    facts,
    pids,
    run_penstock,
)

import penstock_proxy
import penstock_supervisor
import penstock_worker

pytestmark = pytest.mark.root
SCHEMES: Final = ("ports", "handoff", "shared", "reuseport")
CONTAINER: Final = "-all,+setuid,+setgid,+setpcap,+kill,+chown,+dac_override,+net_bind_service"
"""The capabilities of root that README says are enough."""
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


WAITS: Final = """
import socket
with socket.socket(fileno=3) as listener:
    while True:
        listener.accept()[0].close()
"""


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
def test_all_but_the_supervisor_run_as_the_user_without_any_privilege(
    penstock: Any, folder: Path, under: Words, scheme: str
) -> None:
    program(folder)
    proxies = 2 if scheme in ("ports", "handoff") else 0
    run = penstock(
        "--user", "nobody", *(("--proxies", "2") if proxies else ()),
        folder=folder, under=under, app="about:app", scheme=scheme, access_log="./access.log",
        listen=f"127.0.0.1:{low_port()}", env={"SECRET": str(folder / "secret")},
    )  # fmt: skip
    children = run.look()
    assert len(children) == 1 + 2 + proxies
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
    # Of two proxies one may still write to the old one.
    run.until(lambda: run.get("/")[0] == 200 and log.stat().st_size, "a line in the new log")
    assert log.stat().st_uid == NOBODY.pw_uid


def test_when_the_supervisor_is_killed_all_its_processes_end(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock("--user", "nobody", folder=folder, under=under, app=DEMO)
    assert len(run.look()) == 4
    run.process.kill()
    # It waits for the end of everybody that it has seen.
    assert run.ended() == -signal.SIGKILL


def test_a_killed_proxy_and_a_killed_worker_come_back_unprivileged_on_a_low_port(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock(
        "--user", "nobody", folder=folder, under=under, app=DEMO, listen=f"127.0.0.1:{low_port()}"
    )
    before = pids(run, "proxy") | {min(pids(run, "worker"))}
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def are_back() -> bool:
        status = run.status()
        now = {*status["pids"]["proxy"], *status["pids"]["worker"]}
        return len(now) == 3 and not now & before and bool(status["ready"])

    run.until(are_back, "others in their places")
    for child in run.look():
        assert_nobody(child.pid)
    assert run.get("/")[0] == 200


def test_a_worker_may_gain_privileges_only_if_that_is_allowed(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock(
        folder=folder, under=under, app=DEMO, top={"user": "nobody", "no_new_privileges": False}
    )
    for pid in pids(run, "worker"):
        found = facts(pid)
        assert (found["NoNewPrivs"], found["Uid"].split()[0]) == ("0", str(NOBODY.pw_uid))
        assert int(found["CapPrm"], 16) == int(found["CapEff"], 16) == 0
    for pid in pids(run, "proxy"):
        assert_nobody(pid)


def test_root_without_ptrace_rights_still_reads_the_figures_of_its_processes(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock(
        "--user", "nobody", folder=folder, scheme="shared",
        under=(*under, "setpriv", f"--bounding-set={CONTAINER}"),
        command=[sys.executable, "-c", WAITS], access_log="off",
    )  # fmt: skip
    page = run.get("/metrics", "admin")[1]
    for figure in ("open_fds", "max_fds"):
        for slot in "01":
            sample = rf'penstock_process_{figure}{{role="worker",service="web",slot="{slot}"}} \d'
            assert re.search(sample, page), sample


def test_without_root_everything_runs_as_the_current_user(
    penstock: Any, folder: Path, under: Words
) -> None:
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    run = penstock(
        "--user", "nobody", "--run-dir", "run",
        folder=folder, under=(*under, *AS_NOBODY), app=DEMO, access_log="./access.log",
    )  # fmt: skip
    assert "WARNING" not in run.err
    assert facts(run.process.pid)["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    for child in run.look():
        found = facts(child.pid)
        assert (found["Uid"].split()[0], found["NoNewPrivs"]) == (str(NOBODY.pw_uid), "1")
    assert run.get("/")[0] == 200
    assert (folder / "run").stat().st_mode & 0o777 == 0o700
    # Root may ask as well.
    done = run_penstock("status", "--run-dir", str(folder / "run"))
    assert (done.returncode, "ready" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("--user", "root"), 2, "--user: only root can run as 0:0, and we are 65534:65534"),
        (("--user", "daemon"), 2, "--user: only root can run as "),
        (("--user", "nobody", "--group", "daemon"), 2, "--group: only root can run as "),
        (("--user", "nobdy"), 2, '--user: there is no user "nobdy" on this machine; did you mean'),
        (("-b", "127.0.0.1:81"), 1, "permission denied: ports below 1024 need root"),
    ],
)
def test_what_needs_root_is_refused_without_it(
    folder: Path, under: Words, words: Words, status: int, line: str
) -> None:
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    if "-b" in words and int(start) <= 81:
        pytest.skip("low ports are everybody's here")
    done = subprocess.run(
        (*under, *AS_NOBODY, *PENSTOCK, "run", "--admin", "", *words),
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, line in done.stderr) == (status, True), done.stderr


def test_an_interpreter_that_the_user_cannot_reach_is_one_line_of_error(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(0o700)
    for one in (penstock_proxy, penstock_supervisor, penstock_worker):
        package = Path(one.__file__ or "").parent
        shutil.copytree(package, closed / package.name)
    done = subprocess.run(
        (*PENSTOCK, "run", "--user", "nobody", "--admin", "", "-b", "127.0.0.1:0"),
        cwd=folder, env={**os.environ, "PYTHONPATH": str(closed)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"penstock: user: cannot run anything as nobody: (/\S+) is closed to it, and \1/\S+ "
        r"is in it; a Python and an installation elsewhere, as in /opt, would do\n",
        done.stderr,
    ), done.stderr


def test_root_is_warned_when_all_processes_run_as_root(penstock: Any) -> None:
    run = penstock(app=DEMO)
    assert run.err.count("user: proxies and workers run as root") == 1
