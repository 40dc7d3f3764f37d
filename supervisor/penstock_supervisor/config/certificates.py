"""Reads and checks certificate files, and explains what is wrong with them.

Turns the paths in `[service.X.tls]` into certificates that OpenSSL accepts, and extracts names and
validity. Only this module reads private keys. Proxies get the PEM contents over their channel,
because they may run as a user who cannot read the files. Must not know who uses the result, or
when files are read again (`certificate_reload`).

No message, log line or repr contains any part of a key.
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
from penstock_supervisor.config.file_access import UnusableFileError, read_regular
from penstock_supervisor.config.model import CertificateFiles, Config, Service

MAX_FILE: Final = 128 << 10
"""Bytes of one file. One message carries two files to a proxy."""
MAX_TOTAL: Final = 2 << 20
"""Bytes of all files of a run, about 400 certificates. All of them must fit into the send queue
of a proxy that is busy."""
_PRIVATE_KEY: Final = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----[\x20-\x7e\r\n]+?-----END \1-----"
)
_KEY_TYPES: Final = (
    (rsa.RSAPublicKey, "rsa"),
    (ec.EllipticCurvePublicKey, "ec"),
    (ed25519.Ed25519PublicKey, "ed25519"),
    (ed448.Ed448PublicKey, "ed448"),
)


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """The facts of a certificate that people need."""

    location: Location
    """Its key in the table of its service."""
    name: str
    """The first of its names, or empty."""
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """All TLS files of a service, accepted by OpenSSL."""

    settings: TlsSettings
    certificates: tuple[Certificate, ...]
    infos: tuple[CertificateInfo, ...]

    @property
    def size(self) -> int:
        texts = (text for one in self.certificates for text in (one.chain, one.key))
        return len(self.settings.client_ca) + sum(map(len, texts))


class BadFilesError(Exception):
    """The files cannot be used: all problems at once, with keys of the service's table."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = tuple(problems)


def file_paths(service: Service) -> tuple[Path, ...]:
    """Every file that the service's TLS needs."""
    names = [name for _, pair in service.tls.files for name in (pair.cert, pair.key)]
    if service.tls.client_ca is not None:
        names.append(service.tls.client_ca)
    return tuple(map(Path, names))


def read(service: Service) -> Bundle:
    """Read all files and have OpenSSL load them. Raises BadFilesError. Blocks."""
    problems: list[Problem] = []
    certificates: list[Certificate] = []
    infos: list[CertificateInfo] = []
    for entry, files in service.tls.files:
        location = ("tls", *entry)
        try:
            certificate, leaf = _certificate(location, files)
        except BadFilesError as bad:
            problems += bad.problems
            continue
        names = _all_names(leaf)
        first = names[0] if names else ""
        infos.append(
            CertificateInfo(
                (*location, "cert"), first, leaf.not_valid_before_utc, leaf.not_valid_after_utc
            )
        )
        certificates.append(certificate)
    settings = TlsSettings(
        min_version=service.tls.min_version,
        client_certificates=service.tls.client_certificates,
        client_ca=_client_ca(service, problems),
        alpn="http/1.1" if service.mode == "http" else "",
    )
    if not problems:
        problems += _check_with_openssl(settings, certificates, infos)
    if problems:
        raise BadFilesError(problems)
    return Bundle(settings, tuple(certificates), tuple(infos))


def problems(services: Iterable[Service]) -> Iterator[Problem]:
    """Why the files of a configuration cannot be used."""
    size = 0
    for service in services:
        try:
            size += read(service).size
        except BadFilesError as bad:
            for location, text in bad.problems:
                yield Problem(("service", service.name, *location), text)
    if size > MAX_TOTAL:
        text = f"all certificates and keys together are {size} bytes: at most {MAX_TOTAL >> 20} MiB"
        yield Problem(("service",), text)


def warnings(config: Config, now: datetime) -> Iterator[Problem]:
    """Certificates that can be used here, but that clients will reject."""
    for service in config.services:
        if service.tls.files:
            for info in read(service).infos:
                for text in warnings_for(info, now):
                    yield Problem(("service", service.name, *info.location), text)


def warnings_for(info: CertificateInfo, now: datetime) -> Iterator[str]:
    """Why clients will reject a certificate."""
    if info.not_after <= now:
        yield f"expired on {info.not_after:%Y-%m-%d}"
    if info.not_before > now:
        yield f"not valid before {info.not_before:%Y-%m-%d %H:%M} UTC"
    if not info.name:
        yield "has no subject alternative name: clients accept it for no host"


def _certificate(
    location: Location, files: CertificateFiles
) -> tuple[Certificate, x509.Certificate]:
    problems: list[Problem] = []
    chain = _read_file((*location, "cert"), files.cert, _parse_certificates, problems)
    key = _read_file((*location, "key"), files.key, _parse_private_key, problems)
    if problems or not chain:
        raise BadFilesError(problems)
    leaf = chain[0]
    private_key, text = key
    public_key = leaf.public_key()
    if _as_der(private_key.public_key()) != _as_der(public_key):
        why = f"{files.key} does not belong to the first certificate in {files.cert}"
        raise BadFilesError([Problem((*location, "key"), why)])
    kind = next((name for type_, name in _KEY_TYPES if isinstance(public_key, type_)), "")
    return Certificate(_as_pem(chain), text, tuple(_host_names(leaf)), kind), leaf


def _read_file(
    location: Location, path: str, parse: Callable[[bytes], Any], problems: list[Problem]
) -> Any:
    """The parsed file. None if it cannot be used; then the reason is added to `problems`."""
    try:
        return parse(read_regular(Path(path), MAX_FILE))
    except UnusableFileError as error:
        why = f"cannot read {path}: {error}"
    except TypeError:
        why = f"{path} is encrypted, and nobody is there to ask for its password: decrypt it"
    except _NoPemError as error:
        why = f"{path}: {error}"
    except (ValueError, UnsupportedAlgorithm):
        # The library's own message is about ASN.1, and ends with a URL.
        why = f"{path} cannot be understood: it is damaged, or of an unknown kind"
    problems.append(Problem(location, why))
    return None


class _NoPemError(ValueError):
    """The file does not contain the expected PEM block."""


def _parse_certificates(data: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise _NoPemError("expected a certificate as PEM, and there is none in it")
    return x509.load_pem_x509_certificates(data)


def _parse_private_key(data: bytes) -> tuple[Any, str]:
    """The key and its text. A certificate and parameters may precede it in the file."""
    match = _PRIVATE_KEY.search(data)
    if match is None:
        raise _NoPemError("expected a private key as PEM, and there is none in it")
    return load_pem_private_key(match[0], password=None), match[0].decode()


def _as_pem(certificates: Iterable[x509.Certificate]) -> str:
    # Not the file as it is: it may also contain comments in any encoding, or a key.
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def _as_der(public: Any) -> bytes:
    encoded: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _alternative_names(leaf: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _host_names(leaf: x509.Certificate) -> Iterable[str]:
    """Names that a client can ask for by SNI, which excludes IP addresses."""
    alternatives = _alternative_names(leaf)
    names = [] if alternatives is None else alternatives.get_values_for_type(x509.DNSName)
    return dict.fromkeys(name.lower().removesuffix(".") for name in names)


def _all_names(leaf: x509.Certificate) -> list[str]:
    alternatives = _alternative_names(leaf)
    addresses = [] if alternatives is None else alternatives.get_values_for_type(x509.IPAddress)
    return [*_host_names(leaf), *map(str, addresses)]


def _client_ca(service: Service, problems: list[Problem]) -> str:
    path = service.tls.client_ca
    if path is None:
        return ""
    return _as_pem(_read_file(("tls", "client_ca"), path, _parse_certificates, problems) or ())


def _check_with_openssl(
    settings: TlsSettings, certificates: Sequence[Certificate], infos: Sequence[CertificateInfo]
) -> Iterator[Problem]:
    """What OpenSSL refuses in readable files, such as a key that is too short."""
    for certificate, info in zip(certificates, infos, strict=True):
        try:
            Contexts(settings, [certificate])
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            yield Problem(info.location, f"OpenSSL refuses it: {reason}")
