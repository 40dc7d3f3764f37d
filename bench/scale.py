"""What a request costs as things become many, and the longest turn of the loop: `make scale`.

Each case is a run of `penstock` before one nginx as the origin, with wrk as the clients: 2 to 1,000
upstreams under every policy, 1 and 200 services, idle connections, TLS, two proxies, and the access
log at its default ("tail: …"). All columns should be flat. CPU is that of all of penstock's
processes, from /proc. The longest turn is read from `penstock_event_loop_lag_seconds`: the bound of
the highest bucket that a proxy has counted in, and beside it is how many of all turns took longer
than a millisecond. No test checks these numbers; on a machine that does other things they are
wrong, the last columns too: a process that has to wait for a core has a long turn.

    make scale ARGS="--only 'upstreams: least' --seconds 5"

All upstreams are addresses of 127.1.0.0/16 on one port, where one nginx listens. Without wrk or
nginx it says so and does nothing. However it ends, what it has started ends too.
"""

import argparse
import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess  # noqa: TID251 — outside of the packages, it starts what it measures
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final, NamedTuple, get_args

import trustme

from penstock_proxy.config import Balance

CONNECTIONS: Final = 64
READY_S: Final = 120
"""A thousand upstreams have to pass their first check."""
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
METRIC: Final = "penstock_event_loop_lag_seconds_bucket"
LONG_S: Final = 0.001
"""No turn of a proxy's loop should take longer."""
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None)
TICKS: Final = os.sysconf("SC_CLK_TCK")
TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


class Case(NamedTuple):
    """One run."""

    name: str
    upstreams: int = 2
    balance: Balance = "round_robin"
    services: int = 1
    idle: int = 0
    tls: bool = False
    proxies: int = 1
    access_log: str = "off"


def cases() -> Iterator[Case]:
    """All of them, in the order of the table."""
    for balance in get_args(Balance):
        for count in (2, 100, 1000):
            yield Case(f"upstreams: {balance} {count}", upstreams=count, balance=balance)
    for count in (1, 200):
        yield Case(f"services: {count}", services=count)
    for tls in (False, True):
        for count in (10, 1000, 18_000):
            yield Case(f"idle: {count}{' tls' if tls else ''}", idle=count, tls=tls)
    for count in (1, 2):
        yield Case(f"proxies: {count}", proxies=count)
    for balance in get_args(Balance):
        yield Case(f"tail: {balance}", balance=balance, access_log="stdout")
    yield Case("tail: tls", tls=True, access_log="stdout")
    yield Case("tail: idle 1000", idle=1000, access_log="stdout")
    yield Case("tail: services 200", services=200, access_log="stdout")


class Figures(NamedTuple):
    """What one case has shown."""

    cpu_us: float
    requests_per_s: float
    p50: str
    p99: str
    longest_turn: str
    long_turns: str
    errors: str

    def __str__(self) -> str:
        return (
            f"{self.cpu_us:8.1f} {self.requests_per_s:10.0f} {self.p50:>9} {self.p99:>9}"
            f" {self.longest_turn:>12} {self.long_turns:>14} {self.errors}"
        )


HEAD: Final = (
    f"{'case':34} {'CPU us':>8} {'requests/s':>10} {'p50':>9} {'p99':>9} {'longest turn':>12}"
    f" {'over 1 ms, of':>14}"
)


def free_ports(count: int) -> list[int]:
    """So many ports that nobody has at this moment."""
    with ExitStack() as stack:
        new = socket.create_server
        socks = [stack.enter_context(new(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


@contextmanager
def started(folder: Path, *words: str, **more: str) -> Iterator[int]:
    """Run a program in a group of its own, and end it; yields its pid."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=folder,
            start_new_session=True, env={**os.environ, **more},  # noqa: TID251 — PYTHONPATH
            preexec_fn=end_with_parent,  # noqa: PLW1509 — there are no threads here
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_with_parent() -> None:
    """In a child: TERM is sent when this program is killed and can end nothing itself."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(number: int, _: object) -> None:
    """A signal has come: end what was started, whatever comes meanwhile."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


@contextmanager
def origin(folder: Path) -> Iterator[int]:
    """One nginx that answers at every address of this host; yields its port."""
    port = free_port()
    (folder / "origin.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/origin.pid; error_log {folder}/error.log;"
        " events { worker_connections 8192; } http { access_log off; keepalive_timeout 3600;"
        f" keepalive_requests 100000000; server {{ listen 0.0.0.0:{port} backlog=4096;"
        ' location / { return 200 "hello world\\n"; } } }'
    )
    with started(folder, "nginx", "-c", str(folder / "origin.conf")):
        wait_until(lambda: is_open(port), "nginx does not listen", folder)
        yield port


def configuration(case: Case, folder: Path, at: int) -> tuple[str, list[int]]:
    """The configuration, and the ports of its services."""
    ports = free_ports(case.services)
    addresses = [f"127.1.{n >> 8}.{n & 255}:{at}" for n in range(1, case.upstreams + 1)]
    lines = ['run_dir = ""', f"proxies = {case.proxies}"]
    for number, port in enumerate(ports):
        lines += [
            f"[service.s{number}]",
            f'listen = "127.0.0.1:{port}"',
            f'balance = "{case.balance}"',
            f"upstreams = {addresses}",
            f'access_log = "{case.access_log}"',
            f"[service.s{number}.timeouts]",
            'keepalive = "1h"',
            f"[service.s{number}.limits]",
            "connections_per_client = 100000",
        ]
        if case.tls:
            files = (f'cert = "{folder}/cert.pem"', f'key = "{folder}/key.pem"')
            lines += [f"[service.s{number}.tls]", *files]
    return "\n".join(lines), ports


def measure(case: Case, folder: Path, at: int, seconds: int) -> Figures:
    """Run one case."""
    text, ports = configuration(case, folder, at)
    (folder / "scale.toml").write_text(text)
    admin = free_port()
    penstock = str(Path(sys.executable).with_name("penstock"))
    words = ("run", "-c", "scale.toml", "--admin", f"127.0.0.1:{admin}", "-qq")
    with ExitStack() as stack:
        pid = stack.enter_context(started(folder, penstock, *words))
        wait_until(lambda: is_ready(admin), "penstock is not ready", folder)
        for _ in range(case.idle):
            stack.enter_context(idle_client(ports[0], tls=case.tls))
        load(case, ports[0], 1)
        turns, cpu = turns_of(admin), cpu_s(pid)
        report = load(case, ports[0], seconds)
        cpu, after = cpu_s(pid) - cpu, turns_of(admin)
    count = int(found(r"(\d+) requests in", report))
    return Figures(
        1e6 * cpu / max(1, count),
        float(found(r"Requests/sec:\s+([\d.]+)", report)),
        found(r"\s50%\s+(\S+)", report),
        found(r"\s99%\s+(\S+)", report),
        longest_turn(turns, after),
        long_turns(turns, after),
        " ".join(re.findall(r"Socket errors.*|Non-2xx.*", report)),
    )


def load(case: Case, port: int, seconds: int) -> str:
    """What wrk says after so many seconds."""
    url = f"http{'s' if case.tls else ''}://127.0.0.1:{port}/"
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", url]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@contextmanager
def idle_client(port: int, *, tls: bool) -> Iterator[None]:
    """A client that had one answer and keeps its connection."""
    sock = socket.create_connection(("127.0.0.1", port), 30)
    if tls:
        wrapped = TLS.wrap_socket(sock)
        wrapped.sendall(REQUEST)
        wrapped.recv(4096)
        # Nothing more is read or sent, and what OpenSSL keeps of 18,000 is a gigabyte.
        sock = socket.socket(fileno=wrapped.detach())
    else:
        sock.sendall(REQUEST)
        sock.recv(4096)
    with sock:
        yield


def turns_of(admin: int) -> dict[float, float]:
    """Turns of all proxies so far, by the bound of their bucket and below."""
    turns: dict[float, float] = {}
    for labels, count in re.findall(METRIC + r"\{(.*)\} (\S+)", get(admin, "/metrics")):
        if 'role="proxy"' in labels:
            bound = float(found(r'le="([^"]+)"', labels))
            turns[bound] = turns.get(bound, 0.0) + float(count)
    return turns


def longest_turn(before: dict[float, float], after: dict[float, float]) -> str:
    """The bound of the highest bucket that has more than before."""
    grown = [after[bound] - before.get(bound, 0.0) for bound in sorted(after)]
    for bound, count in zip(sorted(after), grown, strict=True):
        if count == grown[-1]:
            return "> 1 s" if bound == float("inf") else f"<= {1000 * bound:g} ms"
    return "?"


def long_turns(before: dict[float, float], after: dict[float, float]) -> str:
    """How many turns took longer than a millisecond, and how many there were."""
    short, every = (after[bound] - before.get(bound, 0.0) for bound in (LONG_S, float("inf")))
    return f"{every - short:.0f}/{every:.0f}"


def cpu_s(pid: int) -> float:
    """User and system time of a process and all that it has started."""
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(stat[11]) + int(stat[12])) / TICKS + sum(cpu_s(int(child)) for child in children)


def get(port: int, path: str) -> str:
    """The body of an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        return body if response.status == 200 else ""
    finally:
        connection.close()


def is_open(port: int) -> bool:
    """Does somebody listen there?"""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def is_ready(admin: int) -> bool:
    """Does every upstream of every service get requests?"""
    if not is_open(admin) or not get(admin, "/readyz"):
        return False
    states = re.findall(r"penstock_worker_in_rotation\{.*\} (\S+)", get(admin, "/metrics"))
    return bool(states) and set(states) == {"1.0"}


def wait_until(is_so: Callable[[], bool], otherwise: str, folder: Path) -> None:
    """Wait for it, or end with the last lines of the log."""
    ends_at = time.monotonic() + READY_S
    while not is_so():
        if time.monotonic() > ends_at:
            sys.exit(f"{otherwise}:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.1)


def found(pattern: str, text: str) -> str:
    """The group of a pattern, which has to be there."""
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"no {pattern!r} in:\n{text}")
    return match[1]


def fits(case: Case, most: int) -> bool:
    """May all of its processes open as many files as they need?"""
    return max(case.idle, 2 * case.idle // case.proxies) + 1000 <= most


def main() -> None:
    parser = argparse.ArgumentParser(description="What a request costs as things become many.")
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--seconds", type=int, default=5, help="of load for each case")
    options = parser.parse_args()
    if missing := [one for one in ("wrk", "nginx") if not shutil.which(one)]:
        print(f"skipped: {' and '.join(missing)} not found; install wrk and nginx-light")
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    began = time.monotonic()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="penstock-scale-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        with origin(folder) as at:
            print(HEAD)
            for one in cases():
                if options.only not in one.name:
                    continue
                # A proxy counts two descriptors for each client, this program has one.
                two = one._replace(name=f"{one.name}, 2 proxies", proxies=2)
                case = one if fits(one, most) else two
                if not fits(case, most):
                    print(f"{case.name:34} skipped: a process may open {most} files")
                    continue
                figures = measure(case, folder, at, options.seconds)
                print(f"{case.name:34} {figures}", flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
