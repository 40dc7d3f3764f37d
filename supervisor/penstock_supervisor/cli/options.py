"""The program on the command line: APP, or a command after `--`, and options as keys of a file.

The commands that start something share it, so a program is written the same for all of them.
"""

from collections.abc import Iterator, Mapping
from shlex import join
from typing import Any, Final

import click

from penstock_supervisor.config.diagnostics import RENAMED
from penstock_supervisor.config.loader import OPTIONS, ConfigError, parse_app

COMMAND: Final = "penstock.command"
"""In a context: the arguments after `--`. Absent without `--`."""


class CommandWithProgram(click.Command):
    """Keeps the arguments after `--` apart.

    click drops the `--`, and then `run node` and `run -- node` would be the same.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            dashes = args.index("--")
            ctx.meta[COMMAND] = tuple(args[dashes + 1 :])
            args = args[:dashes]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            old = error.option_name
            if (new := _renamed(old)) in (name for one in self.params for name in one.opts):
                raise click.NoSuchOption(old, f"{old}: is called {new} now", ctx=ctx) from None
            raise


def _renamed(option: str) -> str:
    """The present name of an option that had another name. "" if there is none."""
    key = option.removeprefix("--").replace("-", "_")
    return OPTIONS.get(RENAMED.get(key, ""), "")


def overrides(
    verb: str, options: Mapping[str, Any], ctx: click.Context
) -> Iterator[tuple[str, Any]]:
    """The options that were given, as keys and values of a file. ConfigError.

    `options` are keys of the configuration. "app" is a tuple of arguments, and "upstreams" a
    tuple of texts that may have commas.
    """
    rest = dict(options)
    app, upstreams = rest.pop("app", ()), rest.pop("upstreams", ())
    command = ctx.meta.get(COMMAND)
    if app:
        yield "app", _app(verb, app)
    if command == ():
        raise ConfigError(("COMMAND: expected a program after --",))
    if command is not None:
        yield "command", command
    if upstreams:
        yield "upstreams", [each.strip() for text in upstreams for each in text.split(",")]
    for key, value in rest.items():
        if value is not None:
            yield key, _number(value) if key in ("workers", "proxies") else value


def _app(verb: str, words: tuple[str, ...]) -> str:
    """One "module:attribute". The error suggests `--` to a user who left it out."""
    hint = f"; to run a command: penstock {verb} -- {join(words)}"
    if len(words) > 1:
        raise ConfigError((f'APP: expected one "module:attribute"{hint}',))
    try:
        return parse_app(words[0])
    except ValueError as error:
        raise ConfigError((f'APP: {error}, not "{words[0]}"{hint}',)) from error


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
