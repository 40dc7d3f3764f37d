"""`penstock check FILE…`: what a configuration file means, or all errors in it.

Lines are `FILE: key: text`, without a prefix, so that an editor can jump to them.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock_supervisor.cli.describe import describe_config
from penstock_supervisor.config import file_trust, warnings
from penstock_supervisor.config.diagnostics import key_path
from penstock_supervisor.config.loader import Config, ConfigError, load


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> int:
    """Say what is wrong with a configuration: every error at once.

    Nothing is started and no port is opened. What is not wrong, but should be thought about,
    is a warning. Exit status 0 if penstock run would accept
    every FILE, 2 if not.
    """
    status = 0
    for file in files:
        try:
            config = load(file, {})
        except ConfigError as error:
            click.echo("\n".join(error.problems), err=True)
            status = 2
        else:
            for line in (
                *warnings.check(config, os.geteuid()),
                *file_trust.warnings(file, config),
                *_certificate_warnings(config),
            ):
                click.echo(f"{file}: warning: {line}", err=True)
            click.echo(f"{file}: ok: {describe_config(config)}")
    return status


def _certificate_warnings(config: Config) -> Iterator[str]:
    """What clients will object to in certificates that can be loaded."""
    if any(service.tls.files for service in config.services):
        from penstock_supervisor.config import certificates

        for where, text in certificates.warnings(config, datetime.now(UTC)):
            yield f"{key_path(where)}: {text}"
