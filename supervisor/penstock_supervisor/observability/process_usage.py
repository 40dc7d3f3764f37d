"""What the kernel says of every process of a run: memory, descriptors, connections.

For /status. Reads /proc and asks for the sockets, so it must run in a thread. A program that does
not report its connections is asked for by its port: a port belongs to one process, because a
successor has another one.
"""

from collections.abc import Mapping

from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.process_stats import process_stats
from penstock_supervisor.kernel.sock_diag import TcpEndpoint
from penstock_supervisor.observability.fd_accounting import place
from penstock_supervisor.snapshot import ProcessUsage, ProcessView, Snapshot


def measure(snapshot: Snapshot) -> dict[int, ProcessUsage]:
    """By pid."""
    processes = [process for child in snapshot.children for process in child.processes]
    accepted = _accepted(processes)
    return {process.pid: _usage(process, accepted) for process in processes}


def _accepted(processes: list[ProcessView]) -> Mapping[TcpEndpoint, int]:
    places = {
        where for process in processes if process.connections is None and (where := _place(process))
    }
    return (sock_diag.accepted(places) if places else None) or {}


def _usage(process: ProcessView, accepted: Mapping[TcpEndpoint, int]) -> ProcessUsage:
    stats = process_stats(process.pid)
    memory = stats.get("penstock_process_resident_memory_bytes")
    fds = stats.get("penstock_process_open_fds")
    where = _place(process)
    return ProcessUsage(
        memory=None if memory is None else int(memory),
        fds=None if fds is None else int(fds),
        connections=accepted.get(where) if where else None,
    )


def _place(process: ProcessView) -> TcpEndpoint | None:
    """Where the kernel can count its connections."""
    return place(process.socket or process.address)
