"""As whom children run: the keys `user` and `group`, looked up on this machine.

Owns what a name means here (numbers, groups, home) and the words for a name that means
nothing. It does not know what becoming that user takes: that is `privileges`.

Only root can become somebody else. Whoever else writes `user` means "this has to be me", so
that one file works for both; anything else is a mistake that is found before the start.
"""

import grp
import os
import pwd
from collections.abc import Mapping
from typing import Final, NamedTuple

from penstock_supervisor.config.diagnostics import meant

_OF_ITS_SESSION: Final = (
    "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "XAUTHORITY", "MAIL",
)  # fmt: skip
"""Variables that lead to what is root's own, and that nobody else can or should open."""
_SHELL: Final = "/bin/sh"


class UnknownError(ValueError):
    """There is no such user or group. `key` says which of the two was meant."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Identity(NamedTuple):
    """A user, as the kernel and as programs know one."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """All that its processes are in; none of ours."""
    name: str
    home: str
    shell: str

    @property
    def is_ours(self) -> bool:
        """It is who we are already: nothing has to change, and nothing needs root."""
        return (self.uid, self.gid) == (os.geteuid(), os.getegid())

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """What a login of that user would have instead of ours."""
        if self.uid == os.geteuid():
            return dict(ours)
        kept = {name: value for name, value in ours.items() if name not in _OF_ITS_SESSION}
        own = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {**kept, **own}


def find(user: str, group: str | None) -> Identity:
    """Look both up, by name or number; the group is the user's own if none is named.

    UnknownError says which word means nothing, and what may have been meant.
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
    # With the group that is wanted as the first: the user's own is only one of many then.
    groups = tuple(sorted({gid, *os.getgrouplist(entry.pw_name, gid)}))
    return Identity(
        entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir or "/", entry.pw_shell or _SHELL
    )


def _user(text: str) -> pwd.struct_passwd | None:
    """None for a number that has no entry, which is no mistake: containers have such users."""
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal():
            return None
    hint = meant(text, (entry.pw_name for entry in pwd.getpwall()))
    raise UnknownError("user", f'there is no user "{text}" on this machine{hint}')


def _group(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        hint = meant(text, (entry.gr_name for entry in grp.getgrall()))
    raise UnknownError("group", f'there is no group "{text}" on this machine{hint}')
