"""nginx and Node as workers, and curl, h2load, wrk and a browser as clients, work unchanged.

Other live tests use peers of our own. Here both ends are programs of others.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Launch
    from tests.support.live.cluster import Cluster

PEERS = Path(__file__).parents[2] / "support/live/peers"
SBIN = "/usr/sbin:/usr/local/sbin"
BIG = b"".join(hashlib.sha512(b"%d" % number).digest() for number in range(1 << 14))
TEXT = b"".join(b"line %d of a text that becomes small\n" % number for number in range(3000))
NGINX = (
    'mkdir run-$PORT && sed -e "s|@PORT@|$PORT|" -e "s|@ROOT@|$PWD|" -e "s|@USER@|$(id -un)|"'
    " nginx.conf > run-$PORT/nginx.conf && exec nginx -p $PWD/run-$PORT -c nginx.conf"
)
both = pytest.mark.parametrize("name", ["nginx", "node"])
pytestmark = pytest.mark.needs("nginx", "node", "curl", "h2load", "wrk")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both servers serve, and where they work."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "big.bin").write_bytes(BIG)
    (folder / "text.txt").write_bytes(TEXT)
    for path in PEERS.iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def peers(launch: "Launch", folder: Path) -> "Cluster":
    """Two nginx and two Node servers behind one proxy; and one more, for state of its own."""

    def service(command: str, workers: int) -> dict[str, object]:
        words = ["sh", "-c", f"cd {folder} && PATH=$PATH:{SBIN} && {command}"]
        return {"command": words, "workers": workers, "access_log": "off"}

    node = "exec node server.js"
    return launch(nginx=service(NGINX, 2), node=service(node, 2), one=service(node, 1))


def curl(run: "Cluster", name: str, *words: str, said: bytes = b"") -> bytes:
    """What curl writes; in its words @ stands for the service."""
    base = "http://{}:{}".format(*run.address(name))
    words = tuple(re.sub("^@/", f"{base}/", word) for word in words)
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "60", *words],
        input=said, capture_output=True, check=True, timeout=90,
    )  # fmt: skip
    return done.stdout


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


@both
def test_a_body_is_the_same(peers: "Cluster", name: str) -> None:
    assert curl(peers, name, "@/big.bin") == BIG
    assert curl(peers, name, "--http1.0", "@/big.bin") == BIG
    assert curl(peers, "node", "@/chunks") == BIG
    assert curl(peers, "node", "--http1.0", "@/chunks") == BIG


@both
def test_head_has_the_length_and_no_body_and_the_connection_goes_on(
    peers: "Cluster", name: str
) -> None:
    head = curl(
        peers, name, "--head", "@/big.bin", "--next", "-s", "@/big.bin", "-w", "%{num_connects}"
    )
    fields, _, body = head.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(BIG) in fields
    assert body == BIG + b"0"


@both
def test_an_unchanged_file_is_answered_with_304(peers: "Cluster", name: str) -> None:
    head = curl(peers, name, "--head", "@/big.bin").decode()
    (etag,) = [line[6:] for line in head.splitlines() if line.lower().startswith("etag: ")]
    out = curl(
        peers, name, "-H", f"If-None-Match: {etag}", "@/big.bin", "@/big.bin",
        "-w", "%{http_code} %{size_download} ",
    )  # fmt: skip
    assert out == b"304 0 304 0 "


@both
def test_range_requests_get_their_ranges(peers: "Cluster", name: str) -> None:
    assert curl(peers, name, "--range", "100-299", "@/big.bin") == BIG[100:300]
    out = curl(
        peers, name, "-o", "/dev/null", "-w", "%{http_code}", "--range", "9999999-", "@/big.bin"
    )
    assert out == (b"416" if name == "nginx" else b"200")
    if name == "nginx":
        several = curl(peers, name, "--range", "0-9,20-29", "@/big.bin")
        assert BIG[:10] in several
        assert BIG[20:30] in several


@both
def test_a_gzip_response_is_forwarded_compressed(peers: "Cluster", name: str) -> None:
    assert curl(peers, name, "--compressed", "@/text.txt") == TEXT
    assert curl(peers, name, "@/text.txt") == TEXT
    small = curl(peers, name, "-H", "Accept-Encoding: gzip", "@/text.txt")
    assert len(small) * 4 < len(TEXT)


@both
def test_curl_reuses_its_connection(peers: "Cluster", name: str) -> None:
    paths = ["@/text.txt", "@/empty", "@/big.bin", "@/nothing", "@/text.txt"]
    words = [word for path in paths for word in ("-o", "/dev/null", path)]
    out = curl(peers, name, "-w", "%{http_code}:%{num_connects} ", *words)
    assert out == b"200:1 204:0 200:0 404:0 200:0 "


@pytest.mark.parametrize("framing", ["length", "chunked", "expected", "expected chunked"])
def test_an_upload_arrives_whole(peers: "Cluster", tmp_path: Path, framing: str) -> None:
    size = 32
    (tmp_path / "up").write_bytes(BIG * size)
    source = "-" if "chunked" in framing else str(tmp_path / "up")
    expect = "Expect: 100-continue" if "expected" in framing else "Expect:"
    said = BIG * size if source == "-" else b""
    out = curl(peers, "node", "-T", source, "-H", expect, "@/digest", said=said)
    assert out == sha(BIG * size)


@both
def test_an_upload_may_be_refused_before_it_is_sent(peers: "Cluster", name: str) -> None:
    out = curl(
        peers, name, "--data-binary", "@-", "-H", "Expect: 100-continue", "-o", "/dev/null",
        "-w", "%{http_code} %{size_upload}", "@/refuse", said=BIG,
    )  # fmt: skip
    assert out == b"413 0"


def test_trailers_and_early_hints_of_node_get_through(peers: "Cluster") -> None:
    wire = peers.connect("node")
    answer = wire.ask(b"GET /chunks HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n")
    assert answer.body == BIG
    assert answer.trailers.startswith(b"X-Sum: ")
    assert wire.ask(b"GET /hints HTTP/1.1\r\nHost: a\r\n\r\n")["link"] == "</a.css>; rel=preload"
    assert wire.answer().body == b"ok"
    wire.close()


def test_a_piece_of_a_response_is_forwarded_before_its_end(peers: "Cluster") -> None:
    wire = peers.connect("one")
    wire.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in wire.head()
    assert wire.until(b"first\n").endswith(b"first\n")
    assert curl(peers, "one", "@/then") == b"told"
    assert wire.until(b"0\r\n\r\n").endswith(b"then\n\r\n0\r\n\r\n")
    wire.close()


async def test_a_websocket_reaches_node(peers: "Cluster") -> None:
    url = "ws://{}:{}/ws".format(*peers.address("node"))
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        for size in (0, 1, 125, 126, 60_000):
            await socket.send_str("x" * size)
            assert await socket.receive_str() == "x" * size


@both
def test_h2load_loses_nothing(peers: "Cluster", name: str) -> None:
    url = "http://{}:{}/text.txt".format(*peers.address(name))
    done = subprocess.run(
        ["h2load", "--h1", "-n", "1000", "-c", "20", "-m", "4", url],
        capture_output=True, text=True, check=True, timeout=90,
    )  # fmt: skip
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout


@both
def test_wrk_sees_no_error(peers: "Cluster", name: str) -> None:
    url = "http://{}:{}/text.txt".format(*peers.address(name))
    done = subprocess.run(
        ["wrk", "-t1", "-c20", "-d1s", url], capture_output=True, text=True, check=True, timeout=90
    )
    assert "Requests/sec" in done.stdout
    assert "errors" not in done.stdout
    assert "Non-2xx" not in done.stdout


@pytest.mark.needs("chromium")
def test_a_browser_loads_the_page_and_all_that_it_uses(
    peers: "Cluster", folder: Path, tmp_path: Path
) -> None:
    url = "http://{}:{}/page".format(*peers.address("one"))
    report = folder / "report.json"
    browser = subprocess.Popen(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", url,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        peers.until(report.exists, "the browser's report")
    finally:
        browser.terminate()
        browser.wait(60)
    assert json.loads(report.read_text()) == {
        "big": sha(BIG).decode(),
        "again": 200,
        "many": [sha(BIG).decode()],
        "text": sha(TEXT).decode(),
        "sent": sha(BIG).decode(),
        "head": str(len(BIG)),
        "range": 10,
        "empty": 204,
        "heard": [1, 200],
    }


def test_no_peer_caused_a_bad_request_or_a_bad_response(peers: "Cluster") -> None:
    assert peers.metric("penstock_connection_errors_total", kind="bad_request") == 0
    assert peers.metric("penstock_connection_errors_total", kind="bad_response") == 0
