"""Reads certificates again when their files change, and sends them to the proxies.

Owns the certificates that each service uses, and the polling of their files. Files are polled
twice a second in a thread, because a disk may be slow and must not block the loop. Symbolic
links are followed, so a link with a new target (certbot) is a change like any other. A change is
acted on when two polls in a row see the same files, because certificate and key are written one
after the other.

New files are checked before any proxy gets them. Files that cannot be used change nothing. They
are logged once, and stay visible in the metrics. Must not know the proxies: `send_to_all` reaches
all of them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.messages import CERTIFICATE, TLS
from penstock_supervisor import blocking
from penstock_supervisor.config.diagnostics import key_path
from penstock_supervisor.errors import StartError
from penstock_supervisor.snapshot import TlsView

if TYPE_CHECKING:
    from penstock_supervisor.config.certificates import Bundle
    from penstock_supervisor.config.model import Service

POLL_S: Final = 0.5
_THREADS: Final = "certificates"
RESULTS: Final = ("ok", "failed")

_log = logging.getLogger("penstock.supervisor")

Signature = tuple[tuple[int, ...], ...]


class ServiceCertificates:
    """The certificates of one service. StartError: they cannot be used."""

    def __init__(self, service: "Service") -> None:
        # Imported late: a run without TLS does not load the library.
        from penstock_supervisor.config import certificates

        self._certificates = certificates
        self._service = service
        self._paths = certificates.file_paths(service)
        self._handled = self._last_polled = self._signatures()
        self.reloads = dict.fromkeys(RESULTS, 0)
        self.is_current = True
        """The certificates in use are those on disk."""
        try:
            self.bundle: Bundle = certificates.read(service)
        except certificates.BadFilesError as bad:
            where, why = bad.problems[0]
            raise StartError(f"service.{service.name}.{key_path(where)}: {why}") from None
        self._warn()

    def messages(self) -> Iterator[dict[str, Any]]:
        """The messages by which a proxy gets these certificates."""
        name, bundle = self._service.name, self.bundle
        number = len(bundle.certificates)
        yield {"cmd": TLS, "service": name, "terms": asdict(bundle.settings), "of": number}
        for certificate in bundle.certificates:
            # The key last: see `penstock_proxy.messages`.
            yield {
                "cmd": CERTIFICATE,
                "service": name,
                "names": certificate.names,
                "kind": certificate.kind,
                "chain": certificate.chain,
                "key": certificate.key,
            }

    def has_settled_change(self) -> bool:
        """Have the files changed, and are they the same as at the last poll? Blocks."""
        before, self._last_polled = self._last_polled, self._signatures()
        if self._last_polled == self._handled or self._last_polled != before:
            return False
        self._handled = self._last_polled
        return True

    def read(self) -> "Bundle | str":
        """The certificates on disk, or why they cannot be used. Blocks."""
        try:
            return self._certificates.read(self._service)
        except self._certificates.BadFilesError as bad:
            return "; ".join(f"{key_path(where)}: {text}" for where, text in bad.problems)

    def apply(self, result: "Bundle | str") -> bool:
        """Use what `read` returned. True: it differs from the certificates in use before."""
        name = self._service.name
        if isinstance(result, str):
            self.is_current = False
            self.reloads["failed"] += 1
            _log.error("%s: %s; what was shown before stays", name, result)
            return False
        self.is_current = True
        if result == self.bundle:
            return False
        self.bundle = result
        self.reloads["ok"] += 1
        described = ", ".join(
            f"{one.name or 'no name'} until {one.not_after:%Y-%m-%d}" for one in result.infos
        )
        _log.info("%s has new certificates: %s", name, described)
        self._warn()
        return True

    def view(self) -> TlsView:
        not_after: dict[str, float] = {}
        for one in self.bundle.infos:
            # Two certificates may have the same first name. The one that expires first matters.
            expires_at = one.not_after.timestamp()
            not_after[one.name] = min(expires_at, not_after.get(one.name, expires_at))
        return TlsView(not_after, dict(self.reloads), self.is_current)

    def _warn(self) -> None:
        for one in self.bundle.infos:
            for text in self._certificates.warnings_for(one, datetime.now(UTC)):
                _log.warning("service.%s.%s: %s", self._service.name, key_path(one.location), text)

    def _signatures(self) -> Signature:
        return tuple(map(_signature, self._paths))


class CertificateReload:
    """All services whose clients speak TLS. Made once for a run; StartError."""

    def __init__(
        self, services: "Iterable[Service]", send_to_all: Callable[[dict[str, Any]], Any]
    ) -> None:
        self._by_service = {
            service.name: ServiceCertificates(service) for service in services if service.tls.files
        }
        self._send_to_all = send_to_all

    def messages(self) -> Iterator[dict[str, Any]]:
        """The messages by which a new proxy gets all certificates."""
        for certificates in self._by_service.values():
            yield from certificates.messages()

    def of(self, name: str) -> ServiceCertificates | None:
        return self._by_service.get(name)

    def use(self, name: str, certificates: ServiceCertificates | None) -> None:
        """The service has these from now on, or none. Proxies are not told: see `announce`."""
        if certificates is None:
            self._by_service.pop(name, None)
        else:
            self._by_service[name] = certificates

    def announce(self, name: str) -> None:
        """Send the proxies the certificates of a service, if it has any."""
        if (certificates := self._by_service.get(name)) is not None:
            for message in certificates.messages():
                self._send_to_all(message)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Send the proxies every set of certificates that has changed."""
        for name, certificates in tuple(self._by_service.items()):
            # However long it takes; a stop of the run leaves it behind.
            if await blocking.start(_THREADS, certificates.has_settled_change):
                result = await blocking.start(_THREADS, certificates.read)
                changed = certificates.apply(result)
                # Meanwhile a reload may have put others in their place.
                if changed and self._by_service.get(name) is certificates:
                    self.announce(name)

    def views(self) -> dict[str, TlsView]:
        """By service."""
        return {name: certificates.view() for name, certificates in self._by_service.items()}


def _signature(path: Path) -> tuple[int, ...]:
    """Identifies a file and its version. The error number if the file cannot be found."""
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or -1,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
