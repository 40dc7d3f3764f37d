"""Certificates are replaced and proxies are killed without a handshake that fails."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.live.tls.conftest import Dial, Files
    from tests.support.live.cluster import Cluster

MIB = 1 << 20
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

DEMO = {"app": "penstock_worker.demo:app", "workers": 1, "access_log": "off"}


@contextmanager
def load(run: "Cluster", dial: "Dial") -> Iterator[list[int]]:
    """Requests on kept connections and on new ones; none of them may fail."""
    stop = threading.Event()
    served: list[int] = []
    failed: list[BaseException] = []

    def ask(*, kept: bool) -> None:
        wire = None
        try:
            while not stop.is_set():
                wire = wire or dial(run)
                wire.send(HELLO if kept else LAST)
                assert b"200 OK" in (wire.read() if kept else wire.rest())
                served.append(1)
                wire = wire if kept else None
        except BaseException as error:  # noqa: BLE001 -- for the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=ask, kwargs={"kept": kept}) for kept in (True, False)]
    for thread in threads:
        thread.start()
    try:
        yield served
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failed


def shown(run: "Cluster", dial: "Dial") -> object:
    wire = dial(run)
    found = wire.tls.getpeercert(binary_form=True)
    wire.close()
    return found


def test_certificates_are_replaced_under_load_without_an_error(
    penstock: "Penstock", files: "Files", dial: "Dial"
) -> None:
    tls = files.issue("localhost", into="renewed")
    run = penstock(services={"web": {**DEMO, "tls": tls}})

    def renewed() -> None:
        before = shown(run, dial)
        files.issue("localhost", into="renewed")
        run.until(lambda: shown(run, dial) != before, "the new certificate")

    with load(run, dial) as served:
        renewed()
        # A half of a pair is no pair: what was shown stays.
        before = shown(run, dial)
        Path(tls["key"]).write_text("nothing")
        run.until(lambda: run.metric("penstock_tls_reloads_total", result="failed") == 1)
        assert run.metric("penstock_tls_last_reload_successful") == 0
        assert shown(run, dial) == before
        renewed()
    assert run.metric("penstock_tls_last_reload_successful") == 1
    assert run.metric("penstock_tls_reloads_total", result="ok") == 2
    assert len(served) > 10
    assert run.err.count("expected a private key as PEM") == 1
    assert "PRIVATE KEY" not in run.err


def test_a_proxy_that_is_killed_comes_back_with_its_certificates(
    penstock: "Penstock", files: "Files", dial: "Dial"
) -> None:
    tls = files.issue("localhost", into="killed")
    run = penstock(services={"web": {**DEMO, "tls": tls}})
    proxy = run.proxy
    proxy.kill()
    # Clients that connect meanwhile wait.
    wire = dial(run)
    wire.send(LAST)
    assert wire.rest().startswith(b"HTTP/1.1 200")
    assert run.proxy.pid != proxy.pid
