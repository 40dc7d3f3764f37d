"""TLS offers only current settings, and bad handshakes are closed without harm to others.

The clients are openssl, curl, a browser, and raw sockets that do no proper handshake.
"""

import base64
import hashlib
import json
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    from tests.live.tls.conftest import Dial, Ended, Files
    from tests.support.live.cluster import Cluster

MIB = 1 << 20
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def probe(run: "Cluster", service: str, *words: str, data: str = "Q\n") -> str:
    """What openssl makes of a service."""
    host, port = run.address(service)
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", *words],
        input=data, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


OLD = ("-cipher", "ALL:@SECLEVEL=0")


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("service", "words", "agreed"),
    [
        ("web", ("-tls1", *OLD), None),
        ("web", ("-tls1_1", *OLD), None),
        ("web", ("-tls1_2",), "TLSv1.2"),
        ("web", ("-tls1_3",), "TLSv1.3"),
        ("raw", ("-tls1_1", *OLD), None),
        ("raw", ("-tls1_3",), "TLSv1.3"),
        ("modern", ("-tls1_2",), None),
        ("modern", ("-tls1_3",), "TLSv1.3"),
        ("web", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), "TLSv1.2"),
        ("web", ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"), "TLSv1.2"),
        ("web", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "AES128-GCM-SHA256:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "ADH:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"), None),
        ("web", ("-tls1_2", "-cipher", "ALL:@SECLEVEL=0", "-sigalgs", "ECDSA+SHA1"), None),
        # Downgrade to a version older than the client's newest.
        ("web", ("-tls1_2", "-fallback_scsv"), None),
    ],
)
def test_only_current_protocols_and_ciphers_are_negotiated(
    run: "Cluster", service: str, words: tuple[str, ...], agreed: str | None
) -> None:
    said = probe(run, service, *words)
    if agreed is None:
        assert "alert" in said, said
        assert "(NONE)" in said
    else:
        assert f"New, {agreed}" in said, said
        assert "Compression: NONE" in said
        assert "Verification error" in said  # it was not told whom to trust


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("h2,http/1.1", "ALPN protocol: http/1.1"), ("h2", "No ALPN negotiated")],
)
def test_alpn_selects_http_1_1(run: "Cluster", offered: str, chosen: str) -> None:
    assert chosen in probe(run, "web", "-alpn", offered)


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed(run: "Cluster", ended: "Ended", tmp_path: Path, version: str) -> None:
    # The tickets of 1.3 come behind the handshake: with an answer they are there for certain.
    words = (version, "-sess_out", str(tmp_path / "session"), "-ign_eof")
    assert "New, TLS" in probe(run, "web", *words, data=LAST.decode())
    before = ended(run, "web", "resumed")
    assert "Reused, TLS" in probe(run, "web", version, "-sess_in", str(tmp_path / "session"))
    assert ended(run, "web", "resumed") == before + 1


@pytest.mark.needs("openssl")
def test_no_session_ticket_offers_early_data(run: "Cluster") -> None:
    """Early data can be replayed by anyone who has seen it: no ticket of ours offers it."""
    said = probe(run, "web", "-tls1_3", "-ign_eof", data=LAST.decode())
    assert said.count("Max Early Data: 0") == said.count("Post-Handshake New Session Ticket") == 1


@pytest.mark.needs("openssl")
def test_a_client_cannot_renegotiate(run: "Cluster") -> None:
    said = probe(run, "web", "-tls1_2", "-legacy_renegotiation", data="R\n" + LAST.decode())
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


@pytest.mark.needs("curl")
def test_curl_gets_its_page_and_the_worker_gets_https_as_the_protocol(
    run: "Cluster", files: "Files"
) -> None:
    _, port = run.address("web")
    done = subprocess.run(
        ["curl", "-sS", "--cacert", files.ca, f"https://localhost:{port}/headers"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert ["X-Forwarded-Proto", "https"] in json.loads(done.stdout)["headers"]


@pytest.mark.needs("chromium")
def test_a_browser_shows_the_page(run: "Cluster", files: "Files", tmp_path: Path) -> None:
    leaf = x509.load_pem_x509_certificate((files.folder / "localhost.pem").read_bytes())
    key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    _, port = run.address("web")
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", f"--user-data-dir={tmp_path}", "--dump-dom",
            f"--ignore-certificate-errors-spki-list={pin}", f"https://localhost:{port}/",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "hello from web/0" in done.stdout


@pytest.mark.parametrize(
    ("name", "certificate"),
    [
        ("localhost", "localhost"),
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("x.any.example", "*.any.example"),
        ("x.y.any.example", "localhost"),
        ("other.example", "localhost"),
        ("", "localhost"),
    ],
)
def test_each_name_has_its_certificate(
    run: "Cluster", files: "Files", dial: "Dial", name: str, certificate: str
) -> None:
    context = files.trusting()
    context.check_hostname = False
    wire = dial(run, "web", name or None, context)
    found = wire.tls.getpeercert() or {}
    assert found["subjectAltName"] == (("DNS", certificate),)
    wire.send(LAST)
    assert wire.rest().startswith(b"HTTP/1.1 200")


def test_a_plain_http_request_to_a_tls_port_gets_a_400_that_says_so(
    run: "Cluster", ended: "Ended"
) -> None:
    before = ended(run, "web", "not_tls")
    answer = run.connect("web").ask(LAST)
    assert answer.status == 400
    assert b"https://" in answer.body
    run.until(lambda: ended(run, "web", "not_tls") == before + 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\x18\x03\x02\x00\x03\x01\x40\x00",  # a heartbeat that asks for memory
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00",
        b"\x16\x03\x01\x00\x00" * 100,
        b"\x80\x2e\x01\x00\x02" + bytes(44),
        b"\0" * 1000,
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc\x03\x03" + b"\xff" * (20 << 10),
    ],
)
@pytest.mark.parametrize("service", ["web", "raw"])
def test_garbage_instead_of_a_handshake_is_closed(
    run: "Cluster", service: str, data: bytes
) -> None:
    wire = run.connect(service)
    wire.send(data)
    with suppress(ConnectionError):
        answer = wire.rest()
        # An alert at the most, and that is 7 bytes.
        assert len(answer) in (0, 7)


def test_garbage_behind_the_handshake_is_closed(run: "Cluster", dial: "Dial") -> None:
    wire = dial(run, "web")
    wire.sock.sendall(b"\x18\x03\x03\x00\x03\x01\x40\x00")
    wire.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        wire.read()


def test_a_slow_handshake_is_cut(run: "Cluster", ended: "Ended") -> None:
    before = ended(run, "tight", "timeout")
    silent, begun = run.connect("tight"), run.connect("tight")
    begun.send(b"\x16\x03\x01\x02\x00\x01")
    assert silent.is_ended()
    assert begun.is_ended()
    run.until(lambda: ended(run, "tight", "timeout") == before + 2)


def test_a_thousand_unfinished_handshakes_keep_no_other_client_out(
    run: "Cluster", ended: "Ended", dial: "Dial"
) -> None:
    before = run.metric("penstock_fds", role="proxy", kind="client")
    displaced = ended(run, "tight", "displaced")
    wires = []
    for number in range(1000):
        wires.append(run.connect("tight"))
        if number % 2:
            wires[-1].send(b"\x16\x03\x01\x02\x00\x01")
    wire = dial(run, "tight")
    wire.send(LAST)
    assert wire.rest().startswith(b"HTTP/1.1 200")
    assert run.metric("penstock_tls_handshakes_in_progress", service="tight") <= 50
    for one in wires:
        assert one.is_ended()
    assert ended(run, "tight", "displaced") > displaced
    run.hang_up()
    run.until(lambda: run.metric("penstock_fds", role="proxy", kind="client") <= before)
    assert run.metric("penstock_tls_handshakes_in_progress", service="tight") == 0
