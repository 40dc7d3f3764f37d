"""What a service shows to who connects by TLS, and which certificate to whom.

Owns the contexts of OpenSSL: one for each certificate, made of texts that the supervisor
read (the proxy has no business with key files), chosen by the name in the ClientHello. The
choice is made before OpenSSL sees a byte: by its own callback a stranger's name would run
through a context that is not his, and one that is no ASCII would be a traceback. Must not
know: connections.

What is offered is what every client of the last ten years has: TLS 1.2 and 1.3, forward
secrecy and authenticated encryption only. Compression, renegotiation and early data are off.
Session tickets are on; each set of contexts has keys of its own, so what was said under a
certificate ends with it.
"""

import os
import ssl
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from penstock_proxy.tls.server_names import ByName

_CIPHERS: Final = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2. Those of 1.3 are all good."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {
    "off": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all certificates of a service."""

    min_version: str = "1.2"
    client_certificates: str = "off"
    client_ca: str = ""
    """PEM: who may have signed a client's certificate."""
    alpn: str = ""
    """The one protocol that is spoken inside; empty: whatever both ends know of."""


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A certificate and its key. Never shown: not in a log, not in an error."""

    chain: str
    """PEM: the certificate, and those that it rests on."""
    key: str
    names: tuple[str, ...]
    """In lower case, as clients ask for them; also "*.example.org"."""
    kind: str = ""
    """Of the key: two kinds of one name are offered side by side."""


class Contexts:
    """Made once from a whole set; a new set makes new ones. ssl.SSLError: OpenSSL refuses."""

    def __init__(self, terms: Terms, credentials: Sequence[Credential]) -> None:
        """The first credential is for all names that no other has."""
        made: dict[tuple[str, ...], tuple[ssl.SSLContext, set[str]]] = {}
        known: list[tuple[str, ssl.SSLContext]] = []
        for one in credentials:
            names = tuple(sorted(one.names))
            context, kinds = made.get(names, (None, set()))
            if context is None or one.kind in kinds:
                context = _context(terms)
                kinds = set()
                made.setdefault(names, (context, kinds))
            kinds.add(one.kind)
            _load(context, one)
            known += [(name, context) for name in names]
            if one is credentials[0]:
                first = context
        self._by_name = ByName(known, first)

    def of(self, name: str) -> ssl.SSLContext:
        """For a name in lower case, or for none."""
        return self._by_name.of(name)


class Inbox:
    """A set on its way over the channel: its terms, then its credentials one by one."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._terms = Terms(**order["terms"])
        self._of: int = order["of"]
        self._credentials: list[Credential] = []

    def add(self, order: dict[str, Any]) -> Contexts | None:
        """One more; the contexts when it was the last. ssl.SSLError, OSError."""
        self._credentials.append(
            Credential(order["chain"], order["key"], tuple(order["names"]), order["kind"])
        )
        if len(self._credentials) < self._of:
            return None
        return Contexts(self._terms, self._credentials)


def _context(terms: Terms) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[terms.min_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # All that is offered is good, and the client knows whether it has AES in hardware.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if terms.alpn:
        # A client that offers only others goes on without: OpenSSL's Python has no way to
        # refuse it, and whatever it says then is no HTTP/1.1 and answered 400.
        context.set_alpn_protocols([terms.alpn])
    if terms.client_ca:
        context.load_verify_locations(cadata=terms.client_ca)
        context.verify_mode = _VERIFY[terms.client_certificates]
    return context


def _load(context: ssl.SSLContext, credential: Credential) -> None:
    """OpenSSL's Python reads files only: one that has no name and is nobody else's."""
    fd = os.memfd_create("credential", os.MFD_CLOEXEC)
    with closing(os.fdopen(fd, "wb", buffering=0)) as file:
        file.write(f"{credential.key}\n{credential.chain}\n".encode())
        # Opened anew by this name, so that both readings begin at the beginning.
        # An encrypted key is an error: without a password OpenSSL asks whoever has the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
