"""Behind a trusted proxy the client's address is known under every scheme, and cannot be forged.

HAProxy, nginx and curl are the peers, in front of the proxy and behind it.
Covers `net/proxy_header` and `listener/filter_chain`.
"""

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import PATH
from tests.support.live.wire import WAIT_S, until

from penstock_worker.net.proxy_protocol import SIGNATURE, build, build_local

if TYPE_CHECKING:
    from tests.live.conftest import Launch, Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

TRUE, HERE = ("203.0.113.9", 4321), ("192.0.2.1", 443)
TRUE6, HERE6 = ("2001:db8::9", 4321), ("2001:db8::1", 443)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
TRUSTED: dict[str, Any] = {
    "accept_proxy": True,
    "trusted_proxies": ["127.0.0.0/8"],
    "access_log": "off",
}

PROGRAMS = """
import json
from aiohttp import web

async def said(request):
    transport = request.transport
    return web.json_response({
        "remote": request.remote,
        "peer": transport.get_extra_info("peername")[:2],
        "here": transport.get_extra_info("sockname")[:2],
        "for": request.headers.getall("X-Forwarded-For", []),
    })

app = web.Application()
app.router.add_get("/", said)

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = [value.decode() for name, value in scope["headers"] if name == b"x-forwarded-for"]
    body = json.dumps({"remote": scope["client"][0], "peer": scope["client"],
                       "here": scope["server"], "for": headers}).encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

READ_BY_US = ("http", "tcp", "both1", "both2")
READ_BY_WORKERS = ("handoff", "hash", "handoff_asgi", "shared", "reuseport")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "program.py").write_text(PROGRAMS)
    return str(folder)


@pytest.fixture
def behind(run_of_all: "Cluster") -> Iterator["Cluster"]:
    yield run_of_all
    run_of_all.hang_up()


@pytest.fixture(scope="module")
def run_of_all(launch: "Launch", programs: str) -> "Cluster":
    """All kinds of services that want a header."""

    def one(attribute: str = "app", workers: int = 1, **keys: Any) -> dict[str, Any]:
        app = f"program:{attribute}"
        return {**TRUSTED, "app": app, "workers": workers, "directory": programs, **keys}

    healthy: dict[str, Any] = {"health": {"path": "/"}}
    return launch(
        http=one(),
        tcp=one("asgi", mode="tcp", send_proxy="v2", **healthy),
        both1=one("asgi", send_proxy="v1", **healthy),
        both2=one(send_proxy="v2"),
        handoff=one(scheme="handoff", **healthy),
        hash=one(scheme="handoff", workers=2, balance="client_hash"),
        handoff_asgi=one("asgi", scheme="handoff"),
        shared=one(scheme="shared", **healthy),
        reuseport=one("asgi", scheme="reuseport"),
    )


def answer_on(wire: "Wire") -> Any:
    return json.loads(wire.answer().body)


@pytest.mark.parametrize("header", [build(1, TRUE, HERE), build(2, TRUE6, HERE6)])
@pytest.mark.parametrize("service", READ_BY_US + READ_BY_WORKERS)
def test_the_worker_sees_the_address_from_the_header(
    behind: "Cluster", service: str, header: bytes
) -> None:
    wire = behind.connect(service)
    true, here = (TRUE, HERE) if header.startswith(b"PROXY") else (TRUE6, HERE6)
    wire.send(header, GET)
    for _ in range(3):
        answer = answer_on(wire)
        if service == "http":
            assert answer["for"] == [true[0]]
        else:
            assert (answer["remote"], answer["peer"]) == (true[0], list(true))
            assert answer["here"] == list(here)
            assert answer["for"] == ([true[0]] if service.startswith("both") else [])
        wire.send(GET)


@pytest.mark.parametrize("service", READ_BY_US + READ_BY_WORKERS)
def test_a_header_may_arrive_in_pieces(behind: "Cluster", service: str) -> None:
    wire = behind.connect(service)
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in build(1, TRUE, HERE):
        wire.send(bytes((byte,)))
    wire.send(GET)
    assert TRUE[0] in json.dumps(answer_on(wire))


@pytest.mark.parametrize("header", [build_local(), build(1), build(2)])
@pytest.mark.parametrize("service", READ_BY_US + READ_BY_WORKERS)
def test_a_header_without_an_address_leaves_the_address_of_the_peer(
    behind: "Cluster", service: str, header: bytes
) -> None:
    wire = behind.connect(service)
    wire.send(header, GET)
    answer = answer_on(wire)
    assert "127.0.0.1" in (answer["remote"], *answer["for"])


@pytest.mark.parametrize("service", READ_BY_US + READ_BY_WORKERS)
def test_a_connection_without_a_header_is_closed_and_counted(
    behind: "Cluster", service: str
) -> None:
    before = behind.metric("penstock_rejected_total", service=service, reason="proxy_header")
    for data in (GET, SIGNATURE + b"\x21\x13\0\0" + GET, b"PROXY TCP4 1.1.1.1\r\n" + GET):
        wire = behind.connect(service)
        wire.send(data)
        assert wire.is_ended()
    after = behind.metric("penstock_rejected_total", service=service, reason="proxy_header")
    assert after - before == 3
    wire = behind.connect(service)
    wire.send(build(2, TRUE, HERE), GET)
    assert answer_on(wire)


@pytest.mark.parametrize("service", ["http", "tcp", "handoff", "hash", "shared", "reuseport"])
def test_a_client_that_disconnects_during_the_header_leaves_nothing_behind(
    behind: "Cluster", service: str
) -> None:
    for size in (0, 1, 14, 20):
        wire = behind.connect(service)
        wire.send(build(2, TRUE, HERE)[:size])
        wire.close()
    behind.until(
        lambda: behind.metric("penstock_connections_active", service=service) == 0,
        "all connections to be gone",
    )
    wire = behind.connect(service)
    wire.send(build(2, TRUE, HERE), GET)
    assert answer_on(wire), "and others are served"


def _is_none(count: Callable[[], float]) -> bool:
    return count() == 0


SCHEMES: list[dict[str, Any]] = [
    {"mode": "http"}, {"mode": "tcp"}, {"scheme": "handoff"},
    {"scheme": "shared"}, {"scheme": "reuseport"},
]  # fmt: skip


def test_untrusted_and_silent_peers_are_closed_and_logged(launch: "Launch", programs: str) -> None:
    keys: dict[str, Any] = {**TRUSTED, "app": "program:app", "directory": programs, "workers": 1}
    strange = {f"strange{n}": {**keys, "trusted_proxies": ["192.0.2.0/24"], **scheme}
               for n, scheme in enumerate(SCHEMES)}  # fmt: skip
    quick: dict[str, Any] = {"timeouts": {"head": "300ms"}}
    silent = {f"silent{n}": {**keys, **quick, **scheme} for n, scheme in enumerate(SCHEMES)}
    run = launch(**strange, **silent)
    for service in strange:
        for _ in range(20):
            wire = run.connect(service)
            assert wire.is_ended()
        found = run.metric("penstock_rejected_total", service=service, reason="proxy_untrusted")
        assert found == 20
        said = run.err.count(f"{service}: closed a connection")
        said += sum(f"{service}/0 |" in line and "closed a conn" in line
                    for line in run.err.splitlines())  # fmt: skip
        assert 0 < said < 20
    for service in silent:
        wire = run.connect(service)
        wire.send(build(1, TRUE, HERE)[:9])
        assert wire.is_ended()
        found = run.metric("penstock_rejected_total", service=service, reason="proxy_header")
        assert found == 1
        active = partial(run.metric, "penstock_connections_active", service=service)
        run.until(partial(_is_none, active), "the account of the silent one")


def test_requests_of_two_clients_never_share_a_connection_that_names_one(
    penstock: "Penstock", origin: "Worker"
) -> None:
    """Under http connections to workers are kept for anybody; not those with a header."""
    seen: list[bytes] = []

    def answer(wire: "Wire") -> None:
        header = wire.until(b"\r\n")
        while wire.head():
            seen.append(header)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    run = penstock(
        "--to", origin(answer).address, **{**TRUSTED, "send_proxy": "v1", "accept_proxy": True}
    )
    clients = [(f"203.0.113.{n}", 1000 + n) for n in range(4)]
    wires = [run.connect() for _ in clients]
    for wire, client in zip(wires, clients, strict=True):
        wire.send(build(2, client, HERE))
    wanted = []
    for _ in range(3):
        for wire, client in zip(wires, clients, strict=True):
            wire.ask(GET)
            wanted.append(build(1, client, HERE))
    assert seen == wanted


@pytest.mark.needs("openssl")
def test_a_header_before_tls_is_forwarded_to_the_worker(
    launch: "Launch", programs: str, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=x", "-days", "2"],
        check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    keys: dict[str, Any] = {
        **TRUSTED, "app": "program:app", "directory": programs, "workers": 1,
        "send_proxy": "v2", "tls": {"cert": str(cert), "key": str(key)},
    }  # fmt: skip
    run = launch(secure=keys, rough={**keys, "mode": "tcp"})
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    for service in ("secure", "rough"):
        address = re.search(rf"(?m)^{service} on \S*?([\d.]+):(\d+)", run.err)
        assert address
        with socket.create_connection((address[1], int(address[2])), timeout=WAIT_S) as sock:
            sock.sendall(build(2, TRUE, HERE))
            with context.wrap_socket(sock) as secure:
                secure.sendall(GET.replace(b"Host: x", b"Host: x\r\nConnection: close"))
                data = b""
                while piece := secure.recv(1 << 16):
                    data += piece
        said = json.loads(data.partition(b"\r\n\r\n")[2])
        assert (said["remote"], said["here"]) == (TRUE[0], list(HERE))


def _has_said(run: "Cluster", client: str) -> bool:
    return any(line["client"] == client for line in run.log)


def test_the_log_has_the_address_from_the_header(penstock: "Penstock", programs: str) -> None:
    keys = {"access_log": "./access.log", "app": "program:app", "directory": programs}
    for scheme in ("ports", "shared"):
        run = penstock(**{**TRUSTED, **keys, "scheme": scheme, "workers": 1})
        run.connect().ask(build(1, TRUE, HERE), GET)
        run.until(partial(_has_said, run, TRUE[0]), "a line of the log")
        run.close()
        assert [line["client"] for line in run.log] == [TRUE[0]]
        (run.folder / "access.log").unlink()


# -- peers of the world


class Peers:
    """HAProxy and nginx, started by a test and ended with the module."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._count = 0

    def start(self, program: str, text: str, *ports: int) -> None:
        """With this configuration; returns when it listens on all of `ports`."""
        self._count += 1
        folder = self._folder / f"{program}{self._count}"
        folder.mkdir()
        conf = folder / "conf"
        conf.write_text(text.replace("FOLDER", str(folder)))
        words = ("-db", "-f", conf) if program == "haproxy" else ("-p", folder, "-c", conf)
        process = subprocess.Popen(
            [shutil.which(program, path=PATH) or program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.terminate)
        for port in ports:
            until(partial(_listens, port), f"{program} on port {port}")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in socks]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(tmp_path_factory.mktemp("peers"), stack)


def ask_from(source: str, port: int) -> str:
    """A request whose client is at this address of loopback."""
    with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as sock:
        sock.settimeout(60)
        sock.sendall(GET.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        data = b""
        while piece := sock.recv(1 << 16):
            data += piece
    return data.decode().partition("\r\n\r\n")[2]


HAPROXY = """
global
    maxconn 100
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
"""


@pytest.mark.needs("haproxy", "nginx")
def test_the_header_of_haproxy_or_nginx_in_front_gives_the_client(
    behind: "Cluster", peers: Peers
) -> None:
    services = ("http", "tcp", "handoff", "shared", "reuseport")
    ports = free_ports(3 * len(services))
    ways = [
        (service, port, option)
        for (service, option), port in zip(
            ((service, option) for service in services for option in ("v1", "v2", "nginx")),
            ports,
            strict=True,
        )
    ]
    haproxy, nginx = HAPROXY, ""
    for service, port, option in ways:
        target = behind.address(service)[1]
        if option == "nginx":
            nginx += f"server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{target}; "
            nginx += "proxy_protocol on; }\n"
        else:
            send = {"v1": "send-proxy", "v2": "send-proxy-v2 proxy-v2-options crc32c"}[option]
            haproxy += f"listen l{port}\n    bind 127.0.0.1:{port}\n"
            haproxy += f"    server s 127.0.0.1:{target} {send}\n"
    peers.start("haproxy", haproxy, *(port for _, port, option in ways if option != "nginx"))
    _start_nginx(peers, f"stream {{ {nginx} }}", [p for _, p, option in ways if option == "nginx"])
    for service, port, option in ways:
        for source in ("127.0.0.77", "127.0.0.78"):
            said = json.loads(ask_from(source, port))
            known = said["for"][0] if service == "http" else said["remote"]
            assert known == source, (service, option)


def _start_nginx(peers: Peers, text: str, ports: list[int]) -> None:
    module = next(Path("/usr/lib/nginx/modules").glob("ngx_stream_module.so"), None)
    load = f"load_module {module};\n" if module and text.startswith("stream") else ""
    peers.start(
        "nginx",
        f"{load}daemon off; pid FOLDER/pid; error_log /dev/null; events {{ }}\n{text}",
        *ports,
    )


@pytest.mark.needs("haproxy", "nginx")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_or_nginx_as_a_worker_gets_the_client_in_a_header(
    launch: "Launch", peers: Peers, version: str
) -> None:
    nginx, haproxy = free_ports(2)
    paths = "access_log off; client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p; "
    paths += "fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;"
    say = "default_type text/plain; return 200 $proxy_protocol_addr;"
    _start_nginx(
        peers,
        f"http {{ {paths} server {{ listen 127.0.0.1:{nginx} proxy_protocol; {say} }} }}",
        [nginx],
    )
    frontend = f"frontend f\n    mode http\n    bind 127.0.0.1:{haproxy} accept-proxy\n"
    frontend += "    http-request return status 200 content-type text/plain lf-string %[src]\n"
    peers.start("haproxy", HAPROXY + frontend, haproxy)
    keys: dict[str, Any] = {"send_proxy": version, "access_log": "off", "health": {"path": "/"}}
    run = launch(
        **{
            f"{name}_{mode}": {**keys, "upstreams": [f"127.0.0.1:{port}"], "mode": mode}
            for name, port in (("nginx", nginx), ("haproxy", haproxy))
            for mode in ("http", "tcp")
        }
    )
    for name in ("nginx", "haproxy"):
        for mode in ("http", "tcp"):
            for source in ("127.0.0.91", "127.0.0.92"):
                assert ask_from(source, run.address(f"{name}_{mode}")[1]) == source


@pytest.mark.needs("curl")
@pytest.mark.parametrize("service", ["http", "tcp", "handoff", "shared", "reuseport"])
def test_the_header_that_curl_sends_is_accepted(behind: "Cluster", service: str) -> None:
    host, port = behind.address(service)
    said = subprocess.run(
        ["curl", "-sS", "--haproxy-protocol", "--interface", "127.0.0.55", f"http://{host}:{port}/"],
        capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "127.0.0.55" in said.stdout.decode()
