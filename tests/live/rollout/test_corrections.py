"""A reload that corrects another one: what both files have, and the run had, never ends.

Covers `rollout/reconfiguration` and `rollout/preparation`.
"""

import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.versions import HEALTH, QUICK, Load, Reload, is_at, reload, served, write
from tests.support.live.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Start = Callable[..., Cluster]
    Services = dict[str, dict[str, Any]]

PROXIED = pytest.mark.parametrize("scheme", ["ports", "handoff"])
ALL = pytest.mark.parametrize("scheme", ["ports", "handoff", "shared", "reuseport"])


def table(scheme: str = "ports", **keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "scheme": scheme, "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, "timeouts": {"stop": "3s"}, **keys,
    }  # fmt: skip


def api(number: int) -> dict[str, Any]:
    """A service whose workers are replaced whenever the number is another one."""
    return table(env={"N": str(number)})


@pytest.fixture
def start(penstock: "Penstock", tmp_path: "Path") -> "Start":
    def make(services: "Services") -> "Cluster":
        write(tmp_path, "good v1")
        run = penstock(services=services, top={"run_dir": str(tmp_path / "run")})
        run.may_trace = True
        return run

    return make


def where() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


def port(address: str) -> tuple[str, int]:
    host, _, number = address.rpartition(":")
    return host, int(number)


def by_mistake(run: "Cluster", services: "Services") -> Reload:
    """A reload that hangs: the new workers get well only when they are replaced again."""
    write(run.folder, "cold v2")
    run.configure(services)
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    return going


def pids(run: "Cluster") -> set[int]:
    return {worker["pid"] for worker in run.workers("web")}


@ALL
def test_a_service_that_was_missing_by_mistake_is_never_closed(start: "Start", scheme: str) -> None:
    run = start({"api": api(1), "web": table(scheme)})
    before, kept, load = pids(run), WebSocket(run), Load(run)
    first = by_mistake(run, {"api": api(2)})
    write(run.folder, "good v3")
    run.configure({"api": api(3), "web": table(scheme)})
    second = reload(run)
    assert second.status == 0, second.said
    assert ", failed 0" in second.said
    assert (first.end(), "superseded by roll-out 2" in first.said) == (1, True), first.said
    kept.echo(b"it was never closed")
    assert load.end() == []
    assert pids(run) == before
    assert served(run) == "v1"
    assert run.get(name="api")[1].startswith("hello from v3")
    # What is in neither file goes with the next one.
    run.configure({"api": api(3)})
    address = port(run.status()["services"]["web"]["listen"])
    assert reload(run).status == 0
    with pytest.raises(OSError, match="refused"):
        run.get_from(address)


@PROXIED
def test_what_a_correction_does_not_have_either_goes_with_it(start: "Start", scheme: str) -> None:
    run = start({"api": api(1), "web": table(scheme)})
    address = port(run.status()["services"]["web"]["listen"])
    first = by_mistake(run, {"api": api(2), "more": table(scheme)})
    write(run.folder, "good v3")
    run.configure({"api": api(3)})
    second = reload(run)
    assert second.status == 0, second.said
    assert first.end() == 1, first.said
    assert list(run.status()["services"]) == ["api"]
    with pytest.raises(OSError, match="refused"):
        run.get_from(address)


@PROXIED
def test_a_correction_that_fails_leaves_what_was_there_before_both(
    start: "Start", scheme: str
) -> None:
    run = start({"api": api(1), "web": table(scheme)})
    before, kept, load = pids(run), WebSocket(run), Load(run)
    first = by_mistake(run, {"api": api(2), "more": table(scheme)})
    write(run.folder, "unimportable v3")
    run.configure({"api": api(3), "web": table(scheme), "other": table(scheme)})
    second = reload(run)
    assert second.status == 1, second.said
    assert "0: cannot import" in second.said, second.said
    assert "; the old version serves" in second.said
    assert first.end() == 1, first.said
    assert sorted(run.status()["services"]) == ["api", "web"]
    kept.echo(b"it was never closed")
    assert load.end() == []
    assert pids(run) == before
    assert run.get(name="api")[1].startswith("hello from v1")
    # Nothing is in the way of the next one.
    write(run.folder, "good v4")
    run.configure({"api": api(2), "more": table(scheme)})
    third = reload(run)
    assert third.status == 0, third.said
    assert sorted(run.status()["services"]) == ["api", "more"]


@PROXIED
def test_an_address_that_was_changed_by_mistake_is_never_closed(
    start: "Start", scheme: str
) -> None:
    right, wrong = where(), where()
    run = start({"api": api(1), "web": table(scheme, listen=right)})
    load, kept = Load(run), WebSocket(run) if scheme == "ports" else None
    first = by_mistake(run, {"api": api(2), "web": table(scheme, listen=wrong)})
    assert run.get_from(port(wrong))[0] == 200
    write(run.folder, "good v3")
    run.configure({"api": api(3), "web": table(scheme, listen=right)})
    second = reload(run)
    assert second.status == 0, second.said
    assert first.end() == 1, first.said
    assert load.end() == []
    if kept is not None:
        kept.echo(b"it was never closed")
    with pytest.raises(OSError, match="refused"):
        run.get_from(port(wrong))


@PROXIED
def test_a_service_that_was_renamed_by_mistake_is_never_closed(start: "Start", scheme: str) -> None:
    right = where()
    run = start({"api": api(1), "web": table(scheme, listen=right)})
    before, kept, load = pids(run), WebSocket(run), Load(run)
    first = by_mistake(run, {"api": api(2), "wbe": table(scheme, listen=right)})
    write(run.folder, "good v3")
    run.configure({"api": api(3), "web": table(scheme, listen=right)})
    second = reload(run)
    assert second.status == 0, second.said
    assert first.end() == 1, first.said
    kept.echo(b"it was never closed")
    assert load.end() == []
    assert pids(run) == before
    assert sorted(run.status()["services"]) == ["api", "web"]
    assert served(run) == "v1"


def test_a_service_that_is_there_still_cannot_come_back_with_another_scheme(
    start: "Start",
) -> None:
    run = start({"api": api(1), "web": table("ports")})
    first = by_mistake(run, {"api": api(2)})
    run.configure({"api": api(2), "web": table("handoff")})
    second = reload(run)
    assert (second.status, "scheme" in second.said) == (2, True), second.said
    (run.folder / "warm").touch()
    assert first.end() == 0, first.said


def test_what_cannot_be_had_is_refused_by_a_dry_run_and_by_a_reload(start: "Start") -> None:
    run = start({"web": table()})
    before = pids(run)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        run.configure({"web": table(), "more": table(listen=taken)})
        for words in (("--dry-run",), ()):
            done = reload(run, *words)
            assert done.status == 2, done.said
            assert f"cannot listen on {taken}" in done.said
    assert run.metric("penstock_config_last_reload_successful") == 0
    assert run.metric("penstock_rollouts_total", result="refused") == 1
    assert pids(run) == before
    done = reload(run, "--dry-run")
    assert done.status == 0, done.said
    assert list(run.status()["services"]) == ["web"]
