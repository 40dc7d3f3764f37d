"""Looks up the keys `user` and `group` on this machine: the account that children run as.

Owns the lookup of ids, groups and home directory, and the messages for unknown names. How a
process changes its user is not known here (`privileges`).

Only root can change the user. If somebody else starts a run, `user` has to name that same
account, so one file works for both. Any other value is an error before the start.
"""

import grp
import os
import pwd
from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock_supervisor.config.diagnostics import suggestion

_SESSION_VARIABLES: Final = (
    "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "XAUTHORITY", "MAIL",
)  # fmt: skip
"""Variables that point to root's own files and sockets, which no other user should open."""
_SHELL: Final = "/bin/sh"


class UnknownError(ValueError):
    """There is no such user or group. `key` is "user" or "group"."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Identity(NamedTuple):
    """A user: ids for the kernel, names and paths for programs."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """All groups of its processes; none of the supervisor's own."""
    name: str
    home: str
    shell: str

    @property
    def is_current_user(self) -> bool:
        """The supervisor runs as this user already, so nothing changes and root is not needed."""
        return (self.uid, self.gid) == (os.geteuid(), os.getegid())

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The inherited environment, with this user's login variables instead of ours."""
        if self.uid == os.geteuid():
            return dict(inherited)
        kept = {name: value for name, value in inherited.items() if name not in _SESSION_VARIABLES}
        own = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {**kept, **own}


def find(user: str, group: str | None) -> Identity:
    """Look up both, by name or number. The default group is the user's own.

    UnknownError says which name is unknown, and suggests a similar one.
    """
    entry = _user(user)
    if entry is None and group is None:
        text = f"expected group beside it: the machine knows no user {user}, nor its group"
        raise UnknownError("user", text)
    gid = _group(group) if group is not None else None
    if entry is None:
        assert gid is not None
        return Identity(int(user), gid, (gid,), user, "/", _SHELL)
    gid = entry.pw_gid if gid is None else gid
    # With the requested group as the primary one, the user's own group is only one of several.
    groups = tuple(sorted({gid, *os.getgrouplist(entry.pw_name, gid)}))
    return Identity(
        entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir or "/", entry.pw_shell or _SHELL
    )


def _user(text: str) -> pwd.struct_passwd | None:
    """None for a number without an entry. That is valid: containers have such users."""
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal():
            return None
    hint = suggestion(text, (entry.pw_name for entry in pwd.getpwall()))
    raise UnknownError("user", f'there is no user "{text}" on this machine{hint}')


def _group(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        hint = suggestion(text, (entry.gr_name for entry in grp.getgrall()))
    raise UnknownError("group", f'there is no group "{text}" on this machine{hint}')
