"""Access logs that are written as somebody else, in directories that are root's.

Proxies and workers open their logs by themselves, as `user`, and open them anew after they
were moved away. In /var/log that user can create nothing; so root does it for him, before
they look, and gives him the file.

Root that opens what a user may have replaced by a link gives away any file of the machine.
So it helps only where that user could not have done anything: every directory on the way is
looked at as it is entered, and none may be his, or writable for him. Where he can write he
needs no help. The file has to be a plain one of root's own, with no other name.
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
_ENTER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking, for a FIFO in its place.
_OPEN: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    | os.O_CLOEXEC
)  # fmt: skip

_log = logging.getLogger("penstock.supervisor")


def hand_over(config: Config, identity: Identity | None) -> None:
    """Have every access log be there, and be its writer's, as far as that takes root."""
    if identity is None or identity.is_current_user or os.geteuid() != 0:
        return
    places = {service.access_log for service in config.services} - {"stdout", "off"}
    for place in sorted(places):
        try:
            _hand_over(Path(place).absolute(), identity)
        except OSError as error:
            # Whoever has to write it says what that means.
            _log.warning("%s: not given to %s: %s", place, identity.name, error.strerror)


def _hand_over(path: Path, identity: Identity) -> None:
    with ExitStack() as stack:
        place = os.open("/", _ENTER)
        stack.callback(os.close, place)
        for name in path.parent.resolve().parts[1:]:
            if _is_open_to(identity, os.fstat(place)):
                return
            place = os.open(name, _ENTER, dir_fd=place)
            stack.callback(os.close, place)
        if _is_open_to(identity, os.fstat(place)) or not _may_be_opened(path.name, place):
            return
        log = os.open(path.name, _OPEN, _MODE, dir_fd=place)
        stack.callback(os.close, log)
        found = os.fstat(log)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == 0:
            os.fchown(log, identity.uid, identity.gid)


def _is_open_to(identity: Identity, directory: os.stat_result) -> bool:
    """Could that user, or anybody but root, have replaced what is in it?"""
    if directory.st_uid != 0:
        return True
    mode = directory.st_mode
    if mode & stat.S_ISVTX:
        # As in /tmp: everybody may add, nobody may replace what is root's.
        return False
    theirs = directory.st_gid in identity.groups and mode & stat.S_IWGRP
    return bool(theirs or mode & stat.S_IWOTH)


def _may_be_opened(name: str, place: int) -> bool:
    """Not there yet, or a plain file: opening a device or a link can be an act of its own."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        # Where everybody may create files he does it himself.
        return not os.fstat(place).st_mode & stat.S_ISVTX
