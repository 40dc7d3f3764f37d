"""What a process inherits has no effect: closed descriptors, a mask, ignored signals.

Each test runs a Python of its own, because this is about the first lines of a process.
"""

import subprocess
import sys
from pathlib import Path

from penstock_worker.inherited_state import HARMLESS

SHOW = """
import os, signal, sys
from penstock_worker import inherited_state
inherited_state.prepare_child()
links = [os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in range(3)]
print("tested", file=sys.stderr)
sys.stdin.read()
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
ignored = {n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN}
for number in inherited_state.HARMLESS:
    os.kill(os.getpid(), number)
with open(sys.argv[1], "w") as file:
    print(*links, len(blocked), *sorted(n.name for n in ignored), file=file)
"""
SPOILT = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
for fd in map(int, sys.argv[3].split(",")):
    os.close(fd)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""


def shown(path: Path, closed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SPOILT, SHOW, str(path), closed],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path.read_text().strip()


def test_closed_descriptors_are_the_null_device_and_signals_are_as_by_default(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out"
    assert shown(path, "0,1,2") == "/dev/null /dev/null /dev/null 0 SIGPIPE SIGXFSZ"
    assert shown(path, "1") == "/dev/null /dev/null pipe 0 SIGPIPE SIGXFSZ"


def test_fault_signals_and_those_that_end_a_process_are_not_disregarded() -> None:
    names = {number.name for number in HARMLESS}
    assert not names & {"SIGTERM", "SIGINT", "SIGSEGV", "SIGABRT", "SIGCHLD", "SIGPIPE"}
