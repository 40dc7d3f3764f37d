"""The command `penstock`, also as `python -m penstock_supervisor`.

Owns what happens before the imports, which take a third of a second. A signal that arrives
meanwhile has the effect that it has later, or none. TERM and INT end the process by that signal,
because nothing was started yet.
"""

import os
import signal
import sys

from penstock_worker import inherited_state

_FREE_THREADED = (
    b"penstock: Python runs without the GIL, which is not supported: set PYTHON_GIL=1, or use the "
    b"other build of this version\n"
)


def main() -> int:
    """Run one command and return its exit status."""
    if not getattr(sys, "_is_gil_enabled", _always)():
        os.write(2, _FREE_THREADED)
        return 1
    _prepare(is_run=sys.argv[1:2] == ["run"])
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        # A KeyboardInterrupt would be a traceback of whichever import it met.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock_supervisor import cli

    signal.signal(signal.SIGINT, interrupt)
    return cli.main()


def _always() -> bool:
    # Before Python 3.13 there was nothing else.
    return True


def _prepare(*, is_run: bool) -> None:
    try:
        inherited_state.open_standard_descriptors()
    except OSError as error:
        # Somebody may read descriptor 2 all the same.
        os.write(2, f"penstock: {os.devnull}: {error.strerror}\n".encode())
        sys.exit(1)
    # A shell ignores INT and QUIT in a background job, and nohup ignores HUP.
    kept = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    if is_run:
        harmless = inherited_state.HARMLESS - {signal.SIGQUIT, signal.SIGTSTP}
        if os.isatty(0):
            # The terminal went away.
            harmless -= {signal.SIGHUP}
        inherited_state.disregard(harmless)
    inherited_state.reset_signals(keep_ignored=kept)


if __name__ == "__main__":
    sys.exit(main())
