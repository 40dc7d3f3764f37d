"""The program of the guardian process, which kills the children of a supervisor that died.

A child dies with its supervisor by PR_SET_PDEATHSIG, but the kernel signals only the child
itself. A process that it started, as by `sh -c`, would survive and keep the worker's port. So
the guardian reads a pipe from the supervisor, on which every process group is announced. The
pipe ends however the supervisor dies. Then the guardian kills all groups that are left.

It runs as a script, without site and without our packages: it must be small, because it runs all
the time, and it must not fail to start. A process that starts a session of its own escapes it.

Lines on stdin: "+ID" adds a process group, "-ID" removes it, "=ID ID ..." replaces all of them.

See docs/decisions/0013-guardian-process.md.
"""

import os
import signal
import sys


def _update(groups: set[int], line: str) -> None:
    kind, ids = line[:1], {int(word) for word in line[1:].split()}
    if kind == "+":
        groups |= ids
    elif kind == "-":
        groups -= ids
    else:
        groups.clear()
        groups |= ids


def main() -> None:
    # The supervisor starts it with all signals ignored that a terminal, a service manager or a
    # mistake may send to all processes. Only the end of the pipe counts.
    groups: set[int] = set()
    for line in sys.stdin:
        _update(groups, line)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    main()
