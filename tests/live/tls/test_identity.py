"""A worker gets the identity of a client's certificate, and no client can forge it."""

import base64
import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509

if TYPE_CHECKING:
    from tests.live.tls.conftest import Dial, Ended, Files, Wire
    from tests.support.live.cluster import Cluster


def identified(files: "Files", name: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
    context = files.trusting()
    (authority or files.authority).issue_cert(name).configure_cert(context)
    return context


def headers(wire: "Wire", *fields: bytes) -> list[list[str]]:
    wire.send(b"GET /headers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    wire.send(b"".join(line + b"\r\n" for line in (*fields, b"")))
    found: list[list[str]] = json.loads(wire.rest().partition(b"\r\n\r\n")[2])["headers"]
    return found


def certificates(found: list[list[str]]) -> list[str]:
    return [value for name, value in found if name.lower().startswith("client-cert")]


@pytest.mark.parametrize("service", ["known", "asked"])
def test_a_worker_gets_the_identity_of_the_clients_certificate(
    run: "Cluster", files: "Files", dial: "Dial", service: str
) -> None:
    wire = dial(run, service, context=identified(files, "client.example"))
    (field,) = certificates(headers(wire, b"Client-Cert: :Zm9yZ2Vk:", b"Client-Cert-Chain: :eA==:"))
    assert field[0] == field[-1] == ":"
    certificate = x509.load_der_x509_certificate(base64.b64decode(field[1:-1]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["client.example"]


@pytest.mark.parametrize("service", ["web", "asked"])
def test_certificate_fields_that_a_client_sends_are_dropped(
    run: "Cluster", dial: "Dial", service: str
) -> None:
    wire = dial(run, service)
    assert not certificates(headers(wire, b"Client-Cert: :Zm9yZ2Vk:", b"client_cert: x"))


def test_a_client_without_the_certificate_that_is_required_is_refused(
    run: "Cluster", ended: "Ended", files: "Files", dial: "Dial"
) -> None:
    before = ended(run, "known", "client_certificate")
    strange = identified(files, "client.example", trustme.CA())
    for context in (files.trusting(), strange):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            # In TLS 1.3 a client is done before it is judged.
            dial(run, "known", context=context).read()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        dial(run, "asked", context=strange).read()
    run.until(lambda: ended(run, "known", "client_certificate") == before + 2)


@pytest.mark.parametrize(("service", "names"), [("raw", False), ("known", True), ("asked", False)])
def test_the_log_has_the_tls_version_and_the_clients_identity(
    run: "Cluster", files: "Files", dial: "Dial", service: str, names: bool
) -> None:
    target = f"/headers?{service}"
    lines = len(run.log)
    wire = dial(run, service, context=identified(files, "logged.example") if names else None)
    wire.send(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target.encode())
    wire.rest()
    wire.close()

    def logged() -> list[dict[str, Any]]:
        found = [line for line in run.log[lines:] if line["service"] == service]
        return [line for line in found if line["target"] in (target, "")]

    run.until(logged)
    (line,) = logged()
    tls = line["tls"]
    assert (tls["version"], tls["resumed"]) == ("TLSv1.3", False)
    assert tls["cipher"].startswith("TLS_")
    assert (tls["subject"] is None) is not names
    assert not names or "organizationName=trustme" in tls["subject"]
