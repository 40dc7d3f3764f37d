"""The SSL contexts of a service, by server name.

Owns: OpenSSL's contexts, one for each certificate. They are made of PEM contents that the
supervisor has read, because a proxy has no access to key files. A context is chosen by the name
in the ClientHello, before OpenSSL gets a byte. With OpenSSL's own callback the handshake would
begin in the context of another name, and a name that is not ASCII would raise an exception. Must
not know: connections.

A client is offered what all of the last ten years support: TLS 1.2 and 1.3, only with forward
secrecy and authenticated encryption. Compression, renegotiation and early data are off. Session
tickets are on, one for a handshake. Each set of contexts has ticket keys of its own, so no session
outlives its certificate.
"""

import os
import ssl
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from penstock_proxy.tls.server_names import ServerNameMap

_CIPHERS: Final = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2. All ciphers of TLS 1.3 are good."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {
    "off": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Settings that all certificates of a service share."""

    min_version: str = "1.2"
    client_certificates: str = "off"
    client_ca: str = ""
    """PEM: the authorities that may have signed a client's certificate."""
    alpn: str = ""
    """The only protocol to negotiate by ALPN; empty: ALPN is not used."""


@dataclass(frozen=True, slots=True, repr=False)
class Certificate:
    """A certificate and its key. Never printed, neither in a log nor in an error."""

    chain: str
    """PEM: the certificate and its chain."""
    key: str
    names: tuple[str, ...]
    """In lower case, as clients ask for them; also "*.example.org"."""
    kind: str = ""
    """Of the key (RSA, ECDSA). Certificates of one name with two kinds are offered side by side."""


class Contexts:
    """The contexts of one set of certificates."""

    def __init__(self, settings: TlsSettings, certificates: Sequence[Certificate] = ()) -> None:
        """The first certificate is the default, for names that none of them has. ssl.SSLError:
        OpenSSL refuses one."""
        self._settings = settings
        self._made: dict[tuple[str, ...], tuple[ssl.SSLContext, set[str]]] = {}
        self._by_name: ServerNameMap[ssl.SSLContext] | None = None
        for certificate in certificates:
            self.add(certificate)

    def add(self, certificate: Certificate) -> None:
        """Load one more. ssl.SSLError: OpenSSL refuses it."""
        names = tuple(sorted(certificate.names))
        context, kinds = self._made.get(names, (None, set()))
        if context is None or certificate.kind in kinds:
            context = _context(self._settings)
            kinds = set()
            self._made.setdefault(names, (context, kinds))
        kinds.add(certificate.kind)
        _load(context, certificate)
        if self._by_name is None:
            self._by_name = ServerNameMap((), context)
        self._by_name.add((name, context) for name in names)

    def for_name(self, name: str) -> ssl.SSLContext:
        """The context for `name`, which is in lower case. Empty: the default context."""
        assert self._by_name is not None, "there is a certificate"
        return self._by_name.lookup(name)


class ContextsBuilder:
    """Receives a set over the channel: the settings first, then one certificate a message. Each is
    loaded when it comes: for OpenSSL that is a good part of a turn of the loop."""

    def __init__(self, message: dict[str, Any]) -> None:
        self._contexts = Contexts(TlsSettings(**message["terms"]))
        self._missing: int = message["of"]

    def add(self, message: dict[str, Any]) -> Contexts | None:
        """Add one; returns the contexts if it was the last. ssl.SSLError, OSError."""
        self._contexts.add(
            Certificate(message["chain"], message["key"], tuple(message["names"]), message["kind"])
        )
        self._missing -= 1
        return None if self._missing else self._contexts


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # All ciphers offered are good. The client chooses: it knows whether it has AES in hardware.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # One ticket for a full handshake, where OpenSSL's default is two: each costs a tenth of the
    # handshake, a resumption brings the next one, and ours may be used twice.
    context.num_tickets = 1
    if settings.alpn:
        # A client that offers only other protocols connects without ALPN: Python's ssl cannot
        # refuse it. If it does not speak HTTP/1.1, it is answered 400.
        context.set_alpn_protocols([settings.alpn])
    if settings.client_ca:
        context.load_verify_locations(cadata=settings.client_ca)
        context.verify_mode = _VERIFY[settings.client_certificates]
    return context


def _load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Load a certificate from memory. Python's ssl reads files only, so it gets an unnamed one."""
    fd = os.memfd_create("credential", os.MFD_CLOEXEC)
    with closing(os.fdopen(fd, "wb", buffering=0)) as file:
        file.write(f"{certificate.key}\n{certificate.chain}\n".encode())
        # OpenSSL opens this path twice, and reads from the beginning each time.
        # An empty password makes an encrypted key an error; otherwise OpenSSL asks the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
