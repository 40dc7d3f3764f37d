"""Certificates as they are on disk now, and who has to know when they change.

Owns what each service shows at the moment, and the look at its files: twice a second, in a
thread, because a disk may be slow and the loop must not be. Files are looked at by what their
names lead to, so a link that is turned round (certbot) is a change like any other. A change
counts when it has stood still for a look: certificate and key are written one after the other.
What is new is tried before anybody is told; what cannot be used changes nothing, is said once,
and stays visible in the metrics. Must not know: proxies (`tell` reaches all of them).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.messages import CERTIFICATE, TLS
from penstock_supervisor.config.diagnostics import key_path
from penstock_supervisor.errors import StartError
from penstock_supervisor.snapshot import TlsView

if TYPE_CHECKING:
    from penstock_supervisor.config.certificates import Bundle
    from penstock_supervisor.config.model import Service

POLL_S: Final = 0.5
RESULTS: Final = ("ok", "failed")

_log = logging.getLogger("penstock.supervisor")

Signature = tuple[tuple[int, ...], ...]


class _ServiceCertificates:
    """One service."""

    def __init__(self, service: "Service") -> None:
        # Late: whoever has no TLS does not pay for the library.
        from penstock_supervisor.config import certificates

        self._certificates = certificates
        self._service = service
        self._paths = certificates.file_paths(service)
        self._seen = self._unsettled = self._signatures()
        self.reloads = dict.fromkeys(RESULTS, 0)
        self.current = True
        """What is on disk is what is shown."""
        try:
            self.bundle: Bundle = certificates.read(service)
        except certificates.BadFilesError as bad:
            where, why = bad.problems[0]
            raise StartError(f"service.{service.name}.{key_path(where)}: {why}") from None
        self._warn()

    def orders(self) -> Iterator[dict[str, Any]]:
        """What a proxy is told."""
        name, bundle = self._service.name, self.bundle
        number = len(bundle.certificates)
        yield {"cmd": TLS, "service": name, "terms": asdict(bundle.settings), "of": number}
        for one in bundle.certificates:
            # The key last: see `messages`.
            yield {
                "cmd": CERTIFICATE,
                "service": name,
                "names": one.names,
                "kind": one.kind,
                "chain": one.chain,
                "key": one.key,
            }

    def settled(self) -> bool:
        """Is there something new that has stood still since the last look? Blocks."""
        before, self._unsettled = self._unsettled, self._signatures()
        if self._unsettled == self._seen or self._unsettled != before:
            return False
        self._seen = self._unsettled
        return True

    def read(self) -> "Bundle | str":
        """What is on disk, or why it cannot be used. Blocks."""
        try:
            return self._certificates.read(self._service)
        except self._certificates.BadFilesError as bad:
            return "; ".join(f"{key_path(where)}: {text}" for where, text in bad.problems)

    def accept(self, found: "Bundle | str") -> bool:
        """Judge what was read; True if it is something new to show."""
        name = self._service.name
        if isinstance(found, str):
            self.current = False
            self.reloads["failed"] += 1
            _log.error("%s: %s; what was shown before stays", name, found)
            return False
        self.current = True
        if found == self.bundle:
            return False
        self.bundle = found
        self.reloads["ok"] += 1
        described = ", ".join(
            f"{one.name or 'no name'} until {one.not_after:%Y-%m-%d}" for one in found.infos
        )
        _log.info("%s has new certificates: %s", name, described)
        self._warn()
        return True

    def view(self) -> TlsView:
        not_after: dict[str, float] = {}
        for one in self.bundle.infos:
            # Two may have the same first name: the one that ends first is what matters.
            at = one.not_after.timestamp()
            not_after[one.name] = min(at, not_after.get(one.name, at))
        return TlsView(not_after, dict(self.reloads), self.current)

    def _warn(self) -> None:
        for one in self.bundle.infos:
            for text in self._certificates.warnings_for(one, datetime.now(UTC)):
                _log.warning("service.%s.%s: %s", self._service.name, key_path(one.location), text)

    def _signatures(self) -> Signature:
        return tuple(map(_signature, self._paths))


class CertificateReload:
    """All services whose clients speak TLS. Made once for a run; StartError."""

    def __init__(
        self, services: "Iterable[Service]", tell: Callable[[dict[str, Any]], Any]
    ) -> None:
        self._served = {one.name: _ServiceCertificates(one) for one in services if one.tls.files}
        self._tell = tell

    def orders(self) -> Iterator[dict[str, Any]]:
        """All that a new proxy has to know."""
        for served in self._served.values():
            yield from served.orders()

    async def run(self) -> None:
        """Look until cancelled."""
        while self._served:
            await asyncio.sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Tell what is new, if anything is."""
        for served in self._served.values():
            if await asyncio.to_thread(served.settled):
                found = await asyncio.to_thread(served.read)
                for order in served.orders() if served.accept(found) else ():
                    self._tell(order)

    def views(self) -> dict[str, TlsView]:
        """By service."""
        return {name: served.view() for name, served in self._served.items()}


def _signature(path: Path) -> tuple[int, ...]:
    """Which file this is, and in which state; only its error while it is away."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or -1,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
