"""Fixtures of the TLS tests: a certificate authority, a run with every kind of TLS listener, and a
client that can begin and end a connection in every way."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

if TYPE_CHECKING:
    from tests.live.conftest import Launch
    from tests.support.live.cluster import Cluster


class Files:
    """An authority, and what it has issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, *names: str, into: str = "") -> dict[str, str]:
        """`cert` and `key` as the configuration has them."""
        made = self.authority.issue_cert(*names)
        stem = into or names[0].replace("*", "any")
        cert, key = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        for path, data in ((cert, chain), (key, made.private_key_pem.bytes())):
            # Replaced in one step, as programs that renew certificates do it.
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.rename(path)
        return {"cert": str(cert), "key": str(key)}

    def trusting(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


class Wire:
    """One end of a TLS connection, with OpenSSL beside the socket: it can end any way."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        sock.settimeout(60)
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._do(self.tls.do_handshake)

    def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("without close_notify") from None
                self._in.write(data)
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._out.pending:
            self.sock.sendall(self._out.read())

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[: 1 << 14]) :]
            self._flush()

    def read(self) -> bytes:
        """What there is, empty after the other side's close_notify."""
        try:
            data: bytes = self._do(lambda: self.tls.read(1 << 16))
        except ssl.SSLZeroReturnError:
            return b""
        return data

    def exactly(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            got += self.read()
        assert len(got) == size
        return got

    def rest(self) -> bytes:
        got = b""
        while data := self.read():
            got += data
        return got

    def finish(self) -> None:
        """Send close_notify, and go on reading."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._flush()

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


DEMO = {"app": "penstock_worker.demo:app", "workers": 1, "access_log": "off"}
LOGGED = {**DEMO, "access_log": "./access.log"}


@pytest.fixture(scope="module")
def shared(launch: "Launch", files: Files) -> "Cluster":
    """The demo application behind every kind of TLS listener."""
    web = [files.issue("localhost"), files.issue("a.example"), files.issue("*.any.example")]
    one = files.issue("localhost", into="one")
    mutual = {**one, "client_ca": str(files.ca)}
    return launch(
        web={**DEMO, "tls": {"certificates": web}},
        raw={**LOGGED, "mode": "tcp", "tls": one},
        modern={**DEMO, "tls": {**one, "min_version": "1.3"}},
        known={**LOGGED, "tls": {**mutual, "client_certificates": "required"}},
        asked={
            **LOGGED, "trusted_proxies": ["127.0.0.1"],
            "tls": {**mutual, "client_certificates": "optional"},
        },
        tight={
            **DEMO, "tls": one, "limits": {"handshakes": 50}, "timeouts": {"handshake": "500ms"},
        },
    )  # fmt: skip


@pytest.fixture
def run(shared: "Cluster") -> Iterator["Cluster"]:
    yield shared
    shared.hang_up()


Dial = Callable[..., Wire]


@pytest.fixture
def dial(files: Files) -> Iterator[Dial]:
    """TLS connections: `dial(run, "web", name="a.example")`."""
    made: list[Wire] = []

    def connect(
        run: "Cluster",
        service: str = "web",
        name: str | None = "localhost",
        context: ssl.SSLContext | None = None,
    ) -> Wire:
        sock = socket.create_connection(run.address(service), timeout=60)
        try:
            made.append(Wire(sock, context or files.trusting(), name))
        except BaseException:
            sock.close()
            raise
        return made[-1]

    yield connect
    for wire in made:
        wire.close()


Ended = Callable[["Cluster", str, str], float]


@pytest.fixture
def ended() -> Ended:
    """How many handshakes of a service ended so: `ended(run, "web", "ok")`."""

    def count(run: "Cluster", service: str, result: str) -> float:
        return run.metric("penstock_tls_handshakes_total", service=service, result=result)

    return count
