"""CPU time, memory, descriptors and connections of real processes are read from /proc."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from penstock_supervisor.compare.host import resource_usage

_GROWS = """
import os, sys
for line in sys.stdin:
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    memory = b"x" * (32 << 20)
    sum(range(3_000_000))
    print("done", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def grow(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    assert child.stdout
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


def test_cpu_time_memory_and_descriptors_of_a_process_are_read(
    child: subprocess.Popen[str],
) -> None:
    grow(child)
    pids = (child.pid,)
    cpu, memory, fds = (
        resource_usage.cpu_time(pids).total,
        resource_usage.rss(pids),
        resource_usage.fds(pids),
    )
    assert cpu > 0
    assert resource_usage.own_cpu_time(pids).total == pytest.approx(cpu)
    assert memory > 32 << 20
    # 0, 1, 2 and the ten, at least.
    assert 13 <= fds <= 40


def test_a_process_that_has_ended_counts_as_zero(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert resource_usage.cpu_time((child.pid,)) == (0, 0)
    assert resource_usage.rss((child.pid,)) == 0
    assert resource_usage.fds((child.pid,)) == 0
    assert resource_usage.tree(child.pid) == ()


def test_a_process_tree_has_the_process_and_all_its_descendants(
    child: subprocess.Popen[str],
) -> None:
    assert child.pid in resource_usage.tree(os.getpid())
    assert resource_usage.tree(child.pid) == (child.pid,)


def test_cpu_time_includes_ended_children_and_own_cpu_time_does_not() -> None:
    def times() -> tuple[float, float]:
        pids = (os.getpid(),)
        return resource_usage.cpu_time(pids).total, resource_usage.own_cpu_time(pids).total

    before = times()
    subprocess.run([sys.executable, "-c", "sum(range(9_000_000))"], check=True, timeout=60)
    after = times()
    assert after[0] - before[0] > after[1] - before[1]


def test_accepted_and_outgoing_connections_are_counted() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        assert resource_usage.listening_processes(port) == (os.getpid(),)
        assert resource_usage.clients(port) == 0
        assert resource_usage.connections_to({port}) == 0
        before = resource_usage.outgoing_connections((os.getpid(),), port)
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stack.enter_context(listener.accept()[0])
        assert resource_usage.clients(port) == 3
        assert resource_usage.connections_to({port}) == 3
        # Both ends are in this process, and only the three connecting ends are outgoing.
        assert resource_usage.outgoing_connections((os.getpid(),), port) - before == 3


def test_a_port_without_a_listener_has_no_processes() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert resource_usage.listening_processes(bound.getsockname()[1]) == ()
