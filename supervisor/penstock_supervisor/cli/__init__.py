"""The command line: one file for each group of commands, and here what they have in common.

Every failure that the user can correct is one line on stderr that starts with `penstock:`. The
exit status says what is wrong: 1, something could not be done; 2, the command line or the
configuration is wrong. A traceback is always a bug of ours. A command only reads options, calls
one function and prints; it makes no decisions of its own.

A command's file is imported when that command is called. `run` needs most of the package, and
`--version`, `--help` and `status` shall not wait for that.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, cast

import click

from penstock_supervisor import logging_setup, release
from penstock_supervisor.config.config_file import ConfigError

__all__ = ["FAILED", "USAGE", "main", "penstock"]

FAILED: Final = 1
USAGE: Final = 2
_OUTPUT_ERRORS: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write to stdout may meet."""
INTERRUPTED: Final = 130
"""128 + SIGINT, what a shell reports of a program that did not catch it."""
_COMMANDS: Final = {
    "run": ("run", "Run copies of a program behind one port, in the foreground."),
    "check": ("check", "Say what is wrong with a configuration: every error at once."),
    "compare": ("compare", "Measure every scheme with one program, side by side."),
    "status": ("control", "Show what runs, and whether it serves."),
    "reload": ("reload", "Read the configuration anew, and replace workers without a loss."),
    "stop": ("control", "Finish what is being served, and leave."),
}
"""Its file, and its line in the help: so that the help imports none of them."""


class _Command(click.Command):
    """Stands for a command in the group, until that command is called."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._module = module

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        module = import_module(f"penstock_supervisor.cli.{self._module}")
        command = cast("click.Command", getattr(module, str(self.name)))
        return command.make_context(info_name, args, parent, **extra)


def _print_version(ctx: click.Context, _option: click.Parameter, *, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(release.describe())
        ctx.exit()


@click.group(
    commands=[_Command(name, *one) for name, one in _COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 not running.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, option, value: _print_version(ctx, option, wanted=value),
    help="Show the version and exit.",
)
def penstock() -> None:
    """Run N copies of a program behind one port, and keep them alive.

    \b
    penstock run                     the demo application: 2 workers, port 8000
    penstock run mypkg.mod:app -w 4  an aiohttp or ASGI application
    penstock run -- node server.js   any program; it gets PORT
    penstock check FILE              say what is wrong with a configuration
    penstock compare                 measure every scheme, side by side
    penstock status                  what runs; also reload, stop
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        status_ = _main(arguments)
        # Now, and not when the interpreter ends, which reports it as an exception that was ignored.
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 — the last place where a bug can be reported
        if not isinstance(error, OSError) or not _is_about_output(error):
            return _report_bug(error)
        _discard_stdout()
        # Who reads a part of the output, as head does, knows that it is not all.
        gone = error.errno == errno.EPIPE
        return FAILED if gone else _fail(FAILED, f"cannot write the output: {error.strerror}")
    return status_


def _main(arguments: Sequence[str] | None) -> int:
    try:
        result = penstock.main(arguments, prog_name="penstock", standalone_mode=False)
    except ConfigError as error:
        return _fail(USAGE, *error.problems)
    except click.exceptions.NoArgsIsHelpError as error:
        return _fail(USAGE, error.ctx.get_help(), prefix="")
    except click.UsageError as error:
        return _fail(USAGE, f"{error.format_message()} (try --help)")
    except click.ClickException as error:
        return _fail(error.exit_code, error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _fail(status: int, *lines: str, prefix: str = "penstock: ") -> int:
    logging_setup.write_bounded("".join(f"{prefix}{line}\n" for line in lines))
    return status


def _report_bug(error: Exception) -> int:
    """One line that says what it is, after the traceback that says where."""
    trace = "".join(traceback.format_exception(error))
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(FAILED, f"{trace}penstock: a bug of penstock ended it: {what}", prefix="")


def _is_about_output(error: OSError) -> bool:
    return error.errno in _OUTPUT_ERRORS and error.filename is None


def _discard_stdout() -> None:
    """What stdout still has in its buffer cannot be written, and must not be tried again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
