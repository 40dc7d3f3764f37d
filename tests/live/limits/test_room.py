"""However many connections some clients hold, others are served, and nobody's request is cut.

Two addresses take every place and do nothing more; time-outs are too long to help anybody.
"""

import resource
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from tests.support.live.wire import WAIT_S, Wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

DEMO = {"app": "penstock_worker.demo:app", "workers": 1, "access_log": "off"}
PLACES = 20
GREEDY = ("127.0.0.2", "127.0.0.3")
OTHER = "127.0.0.4"
LONG = {"queue": "60s", "head": "10m", "keepalive": "10m", "handshake": "10m", "body": "10m"}
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
UPLOAD, REST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", b"x"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
PROXY = b"PROXY TCP4 127.0.0.4 127.0.0.1 1000 80\r\n"


class Tls:
    """A certificate, and who trusts it."""

    def __init__(self, folder: "Path") -> None:
        authority = trustme.CA()
        made = authority.issue_cert("localhost")
        made.private_key_pem.write_to_path(str(folder / "key.pem"))
        for blob in made.cert_chain_pems:
            blob.write_to_path(str(folder / "cert.pem"), append=True)
        self.keys = {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    def over(self, wire: Wire) -> Wire:
        """The same connection, after a handshake."""
        wire.sock = self._context.wrap_socket(wire.sock, server_hostname="localhost")
        return wire


@pytest.fixture
def tls(tmp_path: "Path") -> Tls:
    return Tls(tmp_path)


def plain(wire: Wire) -> Wire:
    return wire


def is_accepted(run: "Cluster", count: int, service: str = "web") -> bool:
    return run.metric("penstock_connections_active", service=service) >= count


def take_all(
    run: "Cluster", sent: bytes, wrap: Callable[[Wire], Wire] = plain, service: str = "web"
) -> list[Wire]:
    """Every place is held by one of two addresses. Of a whole request the answer was read."""
    held = []
    for number in range(PLACES):
        wire = wrap(run.connect(service, GREEDY[number % 2]))
        held.append(wire)
        if sent == GET:
            assert wire.ask(GET).status == 200
        else:
            wire.send(sent)
    run.until(lambda: is_accepted(run, PLACES, service))
    return held


def keys(**more: Any) -> dict[str, Any]:
    limits = {"connections_per_client": PLACES // 2}
    return {**DEMO, "max_connections": PLACES, "timeouts": LONG, "limits": limits, **more}


# -- two addresses have everything


@pytest.mark.parametrize("sent", [b"", GET[:10], GET], ids=["nothing", "half", "kept alive"])
@pytest.mark.parametrize("over", ["http", "https"])
def test_two_addresses_with_all_places_keep_nobody_else_out(
    penstock: "Penstock", tls: Tls, over: str, sent: bytes
) -> None:
    secure = over == "https"
    wrap = tls.over if secure else plain
    timeouts = {key: LONG[key] for key in ("queue", "head", "keepalive", "body")}
    run = penstock(
        services={
            "web": keys(tls=tls.keys) if secure else keys(timeouts=timeouts),
        }
    )
    take_all(run, sent, wrap)
    # More than the others have given up until now.
    for _ in range(3):
        assert wrap(run.connect("web", OTHER)).ask(GET).status == 200
    assert run.metric("penstock_rejected_total") == 0
    assert run.metric("penstock_evicted_connections_total") >= 3
    assert "web accepts no more connections: it is full" in run.err


@pytest.mark.parametrize("sent", [b"", HELLO], ids=["nothing", "half a hello"])
def test_handshakes_that_never_end_keep_nobody_out(
    penstock: "Penstock", tls: Tls, sent: bytes
) -> None:
    run = penstock(services={"web": keys(tls=tls.keys)})
    take_all(run, sent)
    assert tls.over(run.connect("web", OTHER)).ask(GET).status == 200
    assert run.metric("penstock_tls_handshakes_total", result="displaced") >= 1


@pytest.mark.parametrize("sent", [b"", HELLO], ids=["nothing", "half a hello"])
def test_names_that_never_come_keep_nobody_out(penstock: "Penstock", tls: Tls, sent: bytes) -> None:
    other = {**DEMO, "tls": tls.keys}
    web = keys(
        mode="tcp", sni={"localhost": "other"},
        timeouts={"queue": "60s", "handshake": "10m"},
    )  # fmt: skip
    run = penstock(services={"web": web, "other": other})
    take_all(run, sent)
    assert tls.over(run.connect("web", OTHER)).ask(GET).status == 200
    assert run.metric("penstock_evicted_connections_total", state="no_request") >= 1


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
@pytest.mark.parametrize("sent", [b"", PROXY[:10]], ids=["nothing", "half"])
def test_proxy_headers_that_never_come_keep_nobody_out(
    penstock: "Penstock", scheme: str, sent: bytes
) -> None:
    more: dict[str, Any] = {"timeouts": {"queue": "60s", "head": "10m"}}
    if scheme == "handoff":
        # Only with this policy does the proxy itself wait for the header.
        more = {**more, "scheme": scheme, "balance": "client_hash", "limits": {}}
    web = keys(accept_proxy=True, trusted_proxies=["127.0.0.0/8"], **more)
    run = penstock(services={"web": web})
    take_all(run, sent)
    wire = run.connect("web", OTHER)
    wire.send(PROXY)
    assert wire.ask(GET).status == 200


def test_clients_that_come_again_and_again_keep_nobody_out(penstock: "Penstock") -> None:
    run = penstock(services={"web": keys(timeouts={"queue": "60s"})})
    over = threading.Event()

    def greedy(source: str) -> None:
        while not over.is_set():
            with suppress(OSError), socket.socket() as sock:
                sock.settimeout(WAIT_S)
                sock.bind((source, 0))
                sock.connect(run.address())
                sock.sendall(GET)
                # Until it is ended, idle for as long as may be.
                while not over.is_set() and sock.recv(4096):
                    sock.settimeout(1)

    threads = [threading.Thread(target=greedy, args=(GREEDY[n % 2],)) for n in range(2 * PLACES)]
    for thread in threads:
        thread.start()
    try:
        run.until(lambda: run.metric("penstock_accept_pauses_total"))
        for _ in range(10):
            assert run.connect("web", OTHER).ask(LAST).status == 200
    finally:
        over.set()
        run.hang_up()
        for thread in threads:
            thread.join(WAIT_S)


# -- what is never ended


def test_no_request_is_cut_to_make_room(penstock: "Penstock") -> None:
    run = penstock(services={"web": keys(timeouts={"queue": "60s", "body": "10m"})})
    served = [run.connect("web", GREEDY[0]) for _ in range(PLACES // 2)]
    for wire in served:
        wire.send(UPLOAD)
    idle = [run.connect("web", GREEDY[1]) for _ in range(PLACES // 2)]
    for wire in idle:
        assert wire.ask(GET).status == 200
    others = [run.connect("web", OTHER) for _ in range(PLACES // 2)]
    for wire in others:
        wire.send(UPLOAD)
    run.until(lambda: run.metric("penstock_evicted_connections_total") == PLACES // 2)
    assert all(wire.is_ended() for wire in idle)
    for wire in served + others:
        wire.send(REST)
        assert wire.answer().status == 200
    assert run.metric("penstock_rejected_total") == 0
    assert run.metric("penstock_connection_errors_total") == 0


# -- descriptors are the process's


def test_idle_clients_of_one_service_give_their_descriptors_to_another(
    penstock: "Penstock",
) -> None:
    common = {**DEMO, "limits": {"connections_per_client": 0}, "timeouts": {"queue": "60s"}}
    run = penstock(services={"web": common, "other": common})
    proxy = run.proxy
    few = proxy.num_fds() + 100
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (few, few))
    # The last of them has taken the place of another one.
    while not run.metric("penstock_evicted_connections_total", service="web", state="idle"):
        assert run.connect("web").ask(GET).status == 200
    before = run.metric("penstock_evicted_connections_total", service="web", state="idle")
    assert run.connect("other").ask(GET).status == 200
    after = run.metric("penstock_evicted_connections_total", service="web", state="idle")
    assert after > before
    assert run.metric("penstock_accept_pauses_total", service="other", reason="no_descriptors")
    assert run.metric("penstock_evicted_connections_total", service="other") == 0


# -- workers that accept their clients themselves

ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
@pytest.mark.parametrize("sent", [b"", GET[:10], GET], ids=["nothing", "half", "kept alive"])
@pytest.mark.parametrize("app", ["aiohttp", "asgi"])
def test_idle_clients_of_a_worker_that_accepts_them_keep_nobody_out(
    penstock: "Penstock", tmp_path: "Path", app: str, scheme: str, sent: bytes
) -> None:
    (tmp_path / "program.py").write_text(ASGI)
    spec = DEMO["app"] if app == "aiohttp" else "program:app"
    web = {
        **DEMO, "app": spec, "scheme": scheme, "max_connections": PLACES,
        "timeouts": {"keepalive": "10m"},
    }  # fmt: skip
    run = penstock(services={"web": web})
    served = run.connect("web", GREEDY[0])
    served.send(UPLOAD)
    run.until(lambda: is_accepted(run, 1))
    held = []
    for _ in range(PLACES - 1):
        wire = run.connect("web", GREEDY[1])
        held.append(wire)
        if sent == GET:
            assert wire.ask(GET).status == 200
        else:
            wire.send(sent)
    run.until(lambda: is_accepted(run, PLACES))
    # Who comes within the second that these have for their requests may have waited too long.
    run.until(lambda: run.connect("web", OTHER).ask(LAST).status == 200)
    served.send(REST)
    assert served.answer().status == 200
    run.until(lambda: "connections ended to make room: " in run.err)


# -- workers that have the clients of a proxy


@pytest.mark.parametrize("limit", ["max_connections", "per_worker"])
@pytest.mark.parametrize("sent", [b"", GET[:10], GET], ids=["nothing", "half", "kept alive"])
@pytest.mark.parametrize("app", ["aiohttp", "asgi"])
def test_two_addresses_with_all_places_in_workers_keep_nobody_else_out(
    penstock: "Penstock", tmp_path: "Path", app: str, sent: bytes, limit: str
) -> None:
    (tmp_path / "program.py").write_text(ASGI)
    web: dict[str, Any] = {
        **DEMO, "app": DEMO["app"] if app == "aiohttp" else "program:app", "scheme": "handoff",
        "workers": 2, "timeouts": {"queue": "60s", "keepalive": "10m"},
    }  # fmt: skip
    if limit == "max_connections":
        web["max_connections"] = PLACES
    else:
        web["limits"] = {"per_worker": PLACES // 2}
    run = penstock(services={"web": web})
    served = [run.connect("web", GREEDY[0]) for _ in range(4)]
    for wire in served:
        wire.send(UPLOAD)
    for _ in range(PLACES - len(served)):
        wire = run.connect("web", GREEDY[1])
        if sent == GET:
            assert wire.ask(GET).status == 200
        elif sent:
            wire.send(sent)
    run.until(lambda: is_accepted(run, PLACES))
    # They keep what they get, so each needs a place of its own.
    for _ in range(5):
        assert run.connect("web", OTHER).ask(GET).status == 200
    for wire in served:
        wire.send(REST)
        assert wire.answer().status == 200
    assert run.metric("penstock_rejected_total") == 0
    assert "connections ended to make room: " in run.err
    run.hang_up()
    run.until(lambda: run.metric("penstock_connections_active") == 0)
