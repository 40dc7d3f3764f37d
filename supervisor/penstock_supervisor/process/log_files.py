"""Creates access logs for another user, in directories that only root can write to.

Proxies and workers open their logs themselves, as `user`, and open them again after logrotate has
renamed them. In /var/log that user cannot create files. So root creates the file before a proxy or
worker opens it, and makes that user its owner.

If root opened a path that the user can replace by a link, the user could get any file of the
machine. So root does this only where the user cannot change anything: each directory of the path
is checked when it is entered, and must not belong to the user or be writable for them. Where the
user can write, root does nothing. The file itself must be a regular file that belongs to root,
with no other hard link.
"""

import logging
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from penstock_supervisor.config.model import Config
from penstock_supervisor.config.users import Identity

_MODE: Final = 0o640
_DIRECTORY_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Non-blocking, in case there is a FIFO at the path.
_LOG_FLAGS: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    | os.O_CLOEXEC
)  # fmt: skip

_log = logging.getLogger("penstock.supervisor")


def create_for_user(config: Config, identity: Identity | None) -> None:
    """Create every access log that only root can create, and give it to the user."""
    if identity is None or identity.is_current_user or os.geteuid() != 0:
        return
    paths = {service.access_log for service in config.services} - {"stdout", "off"}
    for path in sorted(paths):
        try:
            _create_for_user(Path(path).absolute(), identity)
        except OSError as error:
            # The process that cannot open it reports the consequences.
            _log.warning("%s: not given to %s: %s", path, identity.name, error.strerror)


def _create_for_user(path: Path, identity: Identity) -> None:
    with ExitStack() as stack:
        directory = os.open("/", _DIRECTORY_FLAGS)
        stack.callback(os.close, directory)
        for name in path.parent.resolve().parts[1:]:
            if _can_replace_in(identity, os.fstat(directory)):
                return
            directory = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
            stack.callback(os.close, directory)
        if _can_replace_in(identity, os.fstat(directory)):
            return
        if not _is_safe_to_open(path.name, directory):
            return
        log = os.open(path.name, _LOG_FLAGS, _MODE, dir_fd=directory)
        stack.callback(os.close, log)
        status = os.fstat(log)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == 0:
            os.fchown(log, identity.uid, identity.gid)


def _can_replace_in(identity: Identity, directory: os.stat_result) -> bool:
    """Could this user, or anybody except root, replace a file in this directory?"""
    if directory.st_uid != 0:
        return True
    mode = directory.st_mode
    if mode & stat.S_ISVTX:
        # As in /tmp: everybody may add files, but nobody may replace those of root.
        return False
    group_writable = directory.st_gid in identity.groups and mode & stat.S_IWGRP
    return bool(group_writable or mode & stat.S_IWOTH)


def _is_safe_to_open(name: str, directory: int) -> bool:
    """True for a new or a regular file. Opening a device or a link may have side effects."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        # In a directory where everybody may create files the user does it alone.
        return not os.fstat(directory).st_mode & stat.S_ISVTX
