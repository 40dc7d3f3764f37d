"""Other certificates come with a reload; who is connected stays, and who comes gets the new one."""

import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.live.tls.conftest import Files, Wire
from tests.support.live.many_clients import pids
from tests.support.live.versions import HEALTH, QUICK, reload, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Dial = Callable[[Cluster], Wire]

HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def files(tmp_path: "Path") -> Files:
    return Files(tmp_path)


@pytest.fixture
def dial(files: Files) -> "Iterator[Dial]":
    made: list[Wire] = []

    def connect(run: "Cluster") -> Wire:
        sock = socket.create_connection(run.address(), timeout=60)
        try:
            made.append(Wire(sock, files.trusting(), "localhost"))
        except BaseException:
            sock.close()
            raise
        return made[-1]

    yield connect
    for wire in made:
        wire.close()


def shown(wire: Wire) -> bytes:
    found = wire.tls.getpeercert(binary_form=True)
    assert isinstance(found, bytes)
    return found


def is_served(wire: Wire) -> bool:
    wire.send(HELLO)
    return b"hello from v1" in wire.read()


def test_a_reload_with_other_certificate_files_holds_for_who_comes(
    penstock: "Penstock", tmp_path: "Path", files: Files, dial: "Dial"
) -> None:
    write(tmp_path, "good v1")
    table: dict[str, Any] = {
        "app": "program:app", "workers": 2, "access_log": "off", "rollout": QUICK,
        "health": HEALTH,
    }  # fmt: skip
    first = files.issue("localhost", into="first")
    top = {"run_dir": str(tmp_path / "run")}
    run = penstock(services={"web": {**table, "tls": first}}, top=top)
    before, open_before = pids(run), dial(run)
    assert is_served(open_before)
    run.configure({"web": {**table, "tls": files.issue("localhost", into="second")}})
    done = reload(run)
    assert done.status == 0, done.said
    come = dial(run)
    assert shown(come) != shown(open_before)
    assert is_served(come)
    assert is_served(open_before)
    assert pids(run) == before
    # A broken one changes nothing, and nobody notices.
    (tmp_path / "broken.pem").write_text("nothing")
    broken = {"cert": str(tmp_path / "broken.pem"), "key": first["key"]}
    run.configure({"web": {**table, "tls": broken}})
    refused = reload(run)
    assert refused.status in (1, 2), refused.said
    assert "broken.pem" in refused.said
    late = dial(run)
    assert shown(late) == shown(come)
    assert is_served(late)
    assert is_served(open_before)
