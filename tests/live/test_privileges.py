"""Started as root, only the supervisor stays root; and nobody else gets at what is its own.

What fronts and workers run as is read from /proc, where the kernel says it.

The interpreter of whoever runs these tests may be in a home that is closed to others. Then
the run gets a view of the file system of its own, in which that home shows what it needs.
"""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

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


def pids(run: Any, kind: str) -> set[int]:
    found: list[int] = run.status()["pids"][kind]
    return set(found)


def test_a_killed_supervisor_takes_everybody_along(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock("--user", "nobody", folder=folder, under=under, app=DEMO)
    assert len(run.look()) == 4
    run.process.kill()
    # It waits for the end of everybody that it has seen.
    assert run.ended() == -signal.SIGKILL


def test_a_front_and_a_worker_that_were_killed_come_back_as_nobody_on_a_low_port(
    penstock: Any, folder: Path, under: Words
) -> None:
    run = penstock(
        "--user", "nobody", folder=folder, under=under, app=DEMO, listen=f"127.0.0.1:{low_port()}"
    )
    before = pids(run, "front") | {min(pids(run, "worker"))}
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def are_back() -> bool:
        status = run.status()
        now = {*status["pids"]["front"], *status["pids"]["worker"]}
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
    for pid in pids(run, "front"):
        assert_nobody(pid)


def test_figures_of_others_are_read_by_a_root_that_may_not_look_at_everybody(
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


def test_without_root_everything_works_but_as_oneself(
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
    done = said("status", "--run-dir", str(folder / "run"))
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
def test_what_takes_root_is_refused_to_others(
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


def test_an_interpreter_that_the_user_cannot_reach_is_one_line(folder: Path) -> None:
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


def test_root_is_warned_that_everything_is_root(penstock: Any) -> None:
    run = penstock(app=DEMO)
    assert run.err.count("user: fronts and workers run as root") == 1


# The control socket.


def said(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((*PENSTOCK, *words), capture_output=True, text=True, check=False)


def test_a_run_is_asked_reloaded_and_stopped_over_its_socket(penstock: Any, folder: Path) -> None:
    place = str(folder / "run")
    assert said("status", "--run-dir", place).returncode == 3
    run = penstock("--run-dir", place, folder=folder, app=DEMO)
    done = said("status", "--run-dir", place, "--json")
    status = json.loads(done.stdout)
    assert (done.returncode, status["pid"], status["ready"]) == (0, run.process.pid, True)
    before = pids(run, "worker")
    done = said("reload", "--run-dir", place)
    assert (done.returncode, done.stdout[:4]) == (0, "pid ")
    run.until(lambda: run.status()["ready"] and not pids(run, "worker") & before, "new workers")
    done = said("stop", "--run-dir", place, "--json")
    assert (done.returncode, json.loads(done.stdout)["pid"]) == (0, run.process.pid)
    assert run.ended() == 0
    assert not (folder / "run").exists()
    done = said("stop", "--run-dir", place)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"penstock: not running: no run in {place}\n"


def test_of_two_runs_one_has_to_be_named(penstock: Any, commons: Path, folder: Path) -> None:
    place = str(folder / "run")
    one = penstock("--run-dir", place, folder=folder, app=DEMO, access_log="off")
    beside = Path(tempfile.mkdtemp(dir=commons))
    other = penstock("--run-dir", place, folder=beside, app=DEMO, access_log="off")
    done = said("stop", "--run-dir", place)
    assert (done.returncode, "name one with --pid" in done.stderr) == (1, True)
    assert said("stop", "--run-dir", place, "--pid", str(other.process.pid)).returncode == 0
    assert other.ended() == 0
    assert said("status", "--run-dir", place).stdout.startswith("penstock ")
    assert one.process.poll() is None


def test_nobody_else_reaches_the_control_socket(penstock: Any, folder: Path, under: Words) -> None:
    place = folder / "run"
    run = penstock("--run-dir", str(place), folder=folder, under=under, app=DEMO,
                   top={"user": "nobody"})  # fmt: skip
    (sock,) = place.iterdir()
    assert (place.stat().st_uid, sock.stat().st_mode & 0o777) == (0, 0o600)
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    words = (*under, *AS_NOBODY, sys.executable, "-c", code, str(sock))
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    # Not even if the directory were open.
    place.chmod(0o755)
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    assert run.get("/")[0] == 200


def test_silent_clients_hurt_nobody(penstock: Any, folder: Path) -> None:
    place = folder / "run"
    run = penstock("--run-dir", str(place), folder=folder, app=DEMO)
    (path,) = place.iterdir()
    held = []
    for _ in range(40):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.send(b"POST /st")
        held.append(sock)
    assert said("status", "--run-dir", str(place)).returncode == 0
    assert run.get("/")[0] == 200
    assert said("stop", "--run-dir", str(place)).returncode == 0
    assert run.ended() == 0
    for sock in held:
        sock.close()


def test_a_directory_of_somebody_else_is_refused_before_anything_starts(folder: Path) -> None:
    place = folder / "run"
    place.mkdir(0o700)
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    done = said("run", "--admin", "", "-b", "127.0.0.1:0", "--run-dir", str(place))
    line = f"penstock: run_dir: {place}: belongs to uid {NOBODY.pw_uid}, and we are uid 0"
    assert (done.returncode, line in done.stderr) == (1, True), done.stderr


# Files.


def test_a_log_in_a_directory_of_the_user_is_left_to_the_user(
    penstock: Any, folder: Path, under: Words
) -> None:
    # There he could put a link for root to follow, and so root does nothing.
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    precious = folder / "precious"
    precious.write_text("root's own")
    precious.chmod(0o600)
    run = penstock("--user", "nobody", folder=folder, under=under, app=DEMO,
                   access_log="./access.log")  # fmt: skip
    log = folder / "access.log"
    assert log.stat().st_uid == NOBODY.pw_uid
    log.unlink()
    log.symlink_to("precious")
    run.process.send_signal(signal.SIGUSR1)
    run.until(lambda: "cannot reopen" in run.err, "the front's complaint")
    assert (precious.stat().st_uid, precious.read_text()) == (0, "root's own")


def test_a_unix_socket_is_the_users_and_as_open_as_it_is_said(
    penstock: Any, folder: Path, under: Words
) -> None:
    modes: dict[str, dict[str, str]] = {
        "usual": {}, "closed": {"socket_mode": "0600"}, "open": {"socket_mode": "0666"},
    }  # fmt: skip
    services = {
        name: {"listen": f"unix:{folder}/{name}", "app": DEMO, "workers": 1, "access_log": "off"}
        | mode
        for name, mode in modes.items()
    }
    run = penstock("--user", "nobody", services=services, folder=folder, under=under)
    found = {name: (folder / name).stat() for name in modes}
    assert {(one.st_uid, one.st_gid) for one in found.values()} == {(NOBODY.pw_uid, NOBODY.pw_gid)}
    assert found["closed"].st_mode & 0o777 == 0o600
    assert found["open"].st_mode & 0o777 == 0o666
    assert run.stop() == 0
    assert not any((folder / name).exists() for name in modes)


def test_a_front_serves_tls_with_a_key_that_only_root_can_read(
    penstock: Any, folder: Path, under: Words
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.cert_chain_pems[0].bytes())
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    run = penstock(
        "--user", "nobody", folder=folder, under=under, app=DEMO, access_log="off",
        tls={"cert": "cert.pem", "key": "key.pem"},
    )  # fmt: skip
    assert_nobody(run.front.pid)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with (
        socket.create_connection(run.address(), timeout=60) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wire,
    ):
        wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
