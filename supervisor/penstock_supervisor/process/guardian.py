"""The process that outlives a supervisor, by as long as it takes to kill what it left.

A child dies with its supervisor by PR_SET_PDEATHSIG, but the kernel tells only the child:
what `sh -c` started would stay, on the worker's port. So a second process holds a pipe
from the supervisor, is told of every process group that comes and goes, and kills those
that are left when the pipe ends, which it does however the supervisor dies.

Run as a script, without site and without ours: it has to be small (it is there all the
time) and must not fail to start. What puts itself into a session of its own escapes.

Lines on stdin: "+ID" a group has come, "-ID" it is gone, "=ID ID ..." these and no others.
"""

import os
import signal
import sys


def _follow(groups: set[int], line: str) -> None:
    kind, ids = line[:1], {int(word) for word in line[1:].split()}
    if kind == "+":
        groups |= ids
    elif kind == "-":
        groups -= ids
    else:
        groups.clear()
        groups |= ids


def main() -> None:
    # Those who end a whole terminal or service at once send these to us as well; the pipe
    # alone says when it is over.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        _follow(groups, line)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    main()
