"""Who else can write the configuration of a run that is root's.

Owns one warning: what is in this file is started as root, so whoever can write it is as good as
root. It is no refusal, because containers and shared folders have such files and may be meant to.
Trusted are root, the user that the run is given to, and who has called sudo.
"""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from penstock_supervisor.config import users
from penstock_supervisor.config.environment import sudo_caller
from penstock_supervisor.config.model import Config


class Permissions(NamedTuple):
    """Of a file or a folder."""

    uid: int
    gid: int
    mode: int


def warnings(path: Path, config: Config) -> Iterator[str]:
    """At most one line, without the path, and none unless we are root. Blocks."""
    if os.geteuid() != 0:
        return
    trusted = {0, *sudo_caller()}
    if config.user is not None:
        trusted.add(users.find(config.user, config.group).uid)
    found = [*_writers(path, trusted)]
    if found:
        yield f"{found[0]}: who can write it can start programs as root"


def who_can_write(found: Permissions, trusted: Collection[int]) -> str:
    """Who it is beside the trusted ones, or empty. Who may add to a folder with the sticky bit, as
    to /tmp, may not replace what others have there."""
    if found.uid not in trusted:
        return f"it belongs to user {found.uid}"
    is_sticky = stat.S_ISDIR(found.mode) and found.mode & stat.S_ISVTX
    if found.mode & stat.S_IWOTH and not is_sticky:
        return "everybody can write it"
    if found.mode & stat.S_IWGRP and found.gid != 0 and not is_sticky:
        return f"group {found.gid} can write it"
    return ""


def _writers(path: Path, trusted: Collection[int]) -> Iterator[str]:
    try:
        real = path.resolve()
        # Also the folder of a link: who can replace the link has the file as well.
        folder = path.absolute().parent
        for what, place in (("", real), ("its folder: ", real.parent), ("its folder: ", folder)):
            status = place.stat()
            permissions = Permissions(status.st_uid, status.st_gid, status.st_mode)
            if who := who_can_write(permissions, trusted):
                yield f"{what}{who}"
    except OSError:
        # It has been read, and is gone since.
        return
