"""Who listens on a port: real sockets of this process and of another one."""

import os
import socket
import subprocess
import sys

from penstock_supervisor.kernel import listening_processes, sock_diag

LISTENS = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_the_holder_of_a_port_is_found_and_described() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        inodes = sock_diag.listeners(port)
        assert inodes == {os.fstat(server.fileno()).st_ino}
        assert os.getpid() in listening_processes.processes_with(inodes)
        assert listening_processes.has_one(os.getpid(), inodes)
        assert f"(pid {os.getpid()})" in listening_processes.describe_holder(port)
    assert sock_diag.listeners(port) == set()
    assert listening_processes.describe_holder(port) == "another process"


def test_the_port_of_another_process_is_not_ours() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        inodes = sock_diag.listeners(int(other.stdout.readline()))
        assert listening_processes.processes_with(inodes) == [other.pid]
        assert not listening_processes.has_one(os.getpid(), inodes)
        assert other.stdin is not None
        other.stdin.close()


def test_no_sockets_are_nobodys() -> None:
    assert listening_processes.processes_with(()) == []
