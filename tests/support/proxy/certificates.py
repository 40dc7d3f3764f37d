"""Certificates for services of a running proxy, and clients that trust them."""

import ssl
from typing import Any, Final

import trustme
from tests.support.proxy.running_proxy import RunningProxy

from penstock_proxy import messages

AUTHORITY: Final = trustme.CA()


def send_certificate(proxy: RunningProxy, service: str, *, ca: bool = False) -> None:
    made = AUTHORITY.issue_cert("a.example")
    terms = {}
    if ca:
        pem = AUTHORITY.cert_pem.bytes().decode()
        terms = {"client_certificates": "required", "client_ca": pem}
    proxy.send(messages.TLS, service=service, terms=terms, of=1)
    proxy.send(
        messages.CERTIFICATE,
        service=service,
        names=["a.example"],
        kind="RSA",
        chain="".join(blob.bytes().decode() for blob in made.cert_chain_pems),
        key=made.private_key_pem.bytes().decode(),
    )


def trusting(*, with_certificate: bool = False) -> dict[str, Any]:
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    if with_certificate:
        AUTHORITY.issue_cert("client.example").configure_cert(context)
    return {"ssl": context, "server_hostname": "a.example"}
