"""Certificate files: read, judged, and said in words what is wrong with them.

Owns the step from the paths of a `[service.X.tls]` table to credentials that OpenSSL takes,
and what a person has to know of them: names, and until when they are good. The one reader of
keys: proxies get texts, because they may run as a user who cannot read these files. Must not
know: who is told, and when files are looked at again (`certificate_reload`).

What a key contains is in no message, log line or repr.
"""

import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from penstock_proxy.tls.contexts import Certificate, Contexts, TlsSettings
from penstock_supervisor.config.diagnostics import Location, Problem
from penstock_supervisor.config.model import CertificateFiles, Config, Service

MAX_FILE: Final = 128 << 10
"""Bytes of one file. It travels to the proxies in one message, beside another one."""
MAX_ALL: Final = 2 << 20
"""Bytes of all that a run shows, some 400 certificates: it must fit into what may wait for a
proxy that is busy."""
_KEY: Final = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----[\x20-\x7e\r\n]+?-----END \1-----"
)
_KINDS: Final = (
    (rsa.RSAPublicKey, "rsa"),
    (ec.EllipticCurvePublicKey, "ec"),
    (ed25519.Ed25519PublicKey, "ed25519"),
    (ed448.Ed448PublicKey, "ed448"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What people are told of a certificate."""

    where: Location
    """Its place in the table of its service."""
    name: str
    """The first of its names, or empty."""
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """All that a service shows, proven to work."""

    terms: TlsSettings
    credentials: tuple[Certificate, ...]
    shown: tuple[Shown, ...]

    @property
    def size(self) -> int:
        texts = (text for one in self.credentials for text in (one.chain, one.key))
        return len(self.terms.client_ca) + sum(map(len, texts))


class BadFilesError(Exception):
    """They cannot be used: every problem at once, each with its place in the service's table."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = tuple(problems)


def paths(service: Service) -> tuple[Path, ...]:
    """Every file that a service's TLS is made of."""
    named = [name for _, one in service.tls.files for name in (one.cert, one.key)]
    if service.tls.client_ca is not None:
        named.append(service.tls.client_ca)
    return tuple(map(Path, named))


def read(service: Service) -> Bundle:
    """Read and try everything. BadFilesError. Blocks."""
    problems: list[Problem] = []
    credentials: list[Certificate] = []
    shown: list[Shown] = []
    for where, files in service.tls.files:
        place = ("tls", *where)
        try:
            credential, leaf = _credential(place, files)
        except BadFilesError as bad:
            problems += bad.problems
            continue
        names = _all_names(leaf)
        first = names[0] if names else ""
        shown.append(
            Shown((*place, "cert"), first, leaf.not_valid_before_utc, leaf.not_valid_after_utc)
        )
        credentials.append(credential)
    terms = TlsSettings(
        min_version=service.tls.min_version,
        client_certificates=service.tls.client_certificates,
        client_ca=_client_ca(service, problems),
        alpn="http/1.1" if service.mode == "http" else "",
    )
    if not problems:
        problems += _refused(terms, credentials, shown)
    if problems:
        raise BadFilesError(problems)
    return Bundle(terms, tuple(credentials), tuple(shown))


def problems(services: Iterable[Service]) -> Iterator[Problem]:
    """Why the files of a configuration cannot be used."""
    size = 0
    for service in services:
        try:
            size += read(service).size
        except BadFilesError as bad:
            for where, text in bad.problems:
                yield Problem(("service", service.name, *where), text)
    if size > MAX_ALL:
        text = f"all certificates and keys together are {size} bytes: at most {MAX_ALL >> 20} MiB"
        yield Problem(("service",), text)


def warnings(config: Config, now: datetime) -> Iterator[Problem]:
    """What is no error, and yet what clients will mind, in files that can be used."""
    for service in config.services:
        if service.tls.files:
            for one in read(service).shown:
                for text in warnings_about(one, now):
                    yield Problem(("service", service.name, *one.where), text)


def warnings_about(shown: Shown, now: datetime) -> Iterator[str]:
    """What clients will mind in a certificate."""
    if shown.not_after <= now:
        yield f"expired on {shown.not_after:%Y-%m-%d}"
    if shown.not_before > now:
        yield f"not valid before {shown.not_before:%Y-%m-%d %H:%M} UTC"
    if not shown.name:
        yield "has no subject alternative name: clients accept it for no host"


def _credential(place: Location, files: CertificateFiles) -> tuple[Certificate, x509.Certificate]:
    found: list[Problem] = []
    certificates = _parsed((*place, "cert"), files.cert, _certificates, found)
    key = _parsed((*place, "key"), files.key, _private, found)
    if found or not certificates:
        raise BadFilesError(found)
    leaf = certificates[0]
    private, text = key
    if _bytes(private.public_key()) != _bytes(leaf.public_key()):
        why = f"{files.key} does not belong to the first certificate in {files.cert}"
        raise BadFilesError([Problem((*place, "key"), why)])
    public = leaf.public_key()
    kind = next((kind for known, kind in _KINDS if isinstance(public, known)), "")
    return Certificate(_texts(certificates), text, tuple(_host_names(leaf)), kind), leaf


def _parsed(place: Location, path: str, parse: Callable[[bytes], Any], found: list[Problem]) -> Any:
    """What is in a file; None, and one problem more, if that is not what is expected."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            why = f"{path} is too large: at most {MAX_FILE >> 10} KiB"
        else:
            return parse(data)
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
    except TypeError:
        why = f"{path} is encrypted, and nobody is there to ask for its password: decrypt it"
    except _NotThereError as error:
        why = f"{path}: {error}"
    except (ValueError, UnsupportedAlgorithm):
        # The library's own words are about ASN.1, and end with an address on the web.
        why = f"{path} cannot be understood: it is damaged, or of an unknown kind"
    found.append(Problem(place, why))
    return None


class _NotThereError(ValueError):
    """A file has something else in it."""


def _certificates(data: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise _NotThereError("expected a certificate as PEM, and there is none in it")
    return x509.load_pem_x509_certificates(data)


def _private(data: bytes) -> tuple[Any, str]:
    """The key, and its text: a file may have a certificate and parameters before it."""
    match = _KEY.search(data)
    if match is None:
        raise _NotThereError("expected a private key as PEM, and there is none in it")
    return load_pem_private_key(match[0], password=None), match[0].decode()


def _texts(certificates: Iterable[x509.Certificate]) -> str:
    # Only these, and not the file: between them it may have comments, in any encoding, or a key.
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def _bytes(public: Any) -> bytes:
    encoded: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _alternatives(leaf: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _host_names(leaf: x509.Certificate) -> Iterable[str]:
    """Names that a client can ask for; addresses it cannot."""
    found = _alternatives(leaf)
    names = [] if found is None else found.get_values_for_type(x509.DNSName)
    return dict.fromkeys(name.lower().removesuffix(".") for name in names)


def _all_names(leaf: x509.Certificate) -> list[str]:
    found = _alternatives(leaf)
    addresses = [] if found is None else found.get_values_for_type(x509.IPAddress)
    return [*_host_names(leaf), *map(str, addresses)]


def _client_ca(service: Service, found: list[Problem]) -> str:
    path = service.tls.client_ca
    if path is None:
        return ""
    return _texts(_parsed(("tls", "client_ca"), path, _certificates, found) or ())


def _refused(
    terms: TlsSettings, credentials: Sequence[Certificate], shown: Sequence[Shown]
) -> Iterator[Problem]:
    """What OpenSSL minds, though it can be read: a key that is too short, for one."""
    for credential, one in zip(credentials, shown, strict=True):
        try:
            Contexts(terms, [credential])
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            yield Problem(one.where, f"OpenSSL refuses it: {reason}")
