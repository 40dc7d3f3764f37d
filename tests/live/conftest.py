"""Fixtures of the live tests: a real `penstock run` (`cluster`), workers and clients (`wire`).

A run that leaves a process behind or a traceback in its log fails the test that started it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.live.cluster import Cluster
from tests.support.live.many_clients import PROGRAM
from tests.support.live.wire import Origin, Wire

Penstock = Callable[..., Cluster]
Worker = Callable[..., Origin]
Launch = Callable[..., Cluster]
Peak = Callable[[int], Callable[[], int]]


@pytest.fixture
def origin() -> Iterator[Worker]:
    """Makes workers: `origin(answer)`."""
    with ExitStack() as stack:

        def make(answer: Callable[[Wire], object]) -> Origin:
            made = Origin(answer)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def penstock(tmp_path: Path) -> Iterator[Penstock]:
    """Makes a run: `penstock("--to", address, balance="client_hash")`, or of several `services`."""
    with ExitStack() as stack:

        def make(
            *words: str,
            services: Mapping[str, Mapping[str, Any]] | None = None,
            folder: Path = tmp_path,
            under: Sequence[str] = (),
            top: Mapping[str, Any] | None = None,
            **keys: Any,
        ) -> Cluster:
            ours = "app" in keys and keys.get("mode") != "udp"
            seen = ours or keys.get("scheme", "ports") == "ports"
            log = "./access.log" if seen else "off"
            tables = services or {"web": {"access_log": log, **keys}}
            made = Cluster(folder, tables, *words, under=under, top=top)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An application of a test's own, which can be made to retire."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return "program:app"


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Makes runs that the tests of a module share: `launch(web={...}, raw={...})`."""
    with ExitStack() as stack:

        def make(*words: str, **services: Mapping[str, Any]) -> Cluster:
            made = Cluster(tmp_path_factory.mktemp("run"), services, *words)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def demo_run(launch: Launch) -> Cluster:
    """The demo application under both modes: services web (http) and raw (tcp)."""
    demo = {"app": "penstock_worker.demo:app", "access_log": "off"}
    return launch(web=demo, raw={**demo, "mode": "tcp"})


@pytest.fixture
def demo(demo_run: Cluster) -> Iterator[Cluster]:
    """The demo application, shared by the tests of a module."""
    yield demo_run
    demo_run.hang_up()


@pytest.fixture
def peak() -> Peak:
    """From `peak(pid)` on: by how many bytes a process has grown at the most, asked when it is."""

    def begin(pid: int) -> Callable[[], int]:
        status = Path(f"/proc/{pid}/status")

        def high_water() -> int:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            assert match
            return int(match[1]) << 10

        # Forget what was the most until now.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before = high_water()
        return lambda: high_water() - before

    return begin
