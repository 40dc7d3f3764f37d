"""User and capabilities of a child, and how it drops the rest between fork and exec.

Owns the order of the system calls, which matters:

1. The bounding set, because only root can empty it.
2. The groups, because the new user cannot change them.
3. The user.
4. The capabilities, because ambient and inheritable ones survive the change of user.
5. no_new_privs, which cannot be undone.

After that `spawn` sets the parent death signal, because a change of user clears it.

Popen has arguments for user and groups, but it applies them before it calls a function of ours.
Then it is too late to empty the bounding set.
"""

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from penstock_supervisor.config.model import Config
from penstock_supervisor.config.users import Identity, find

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
# Loaded before any fork, because imports and symbol lookups are not safe between fork and exec.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _last_capability() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 40


_LAST_CAPABILITY: Final = _last_capability()


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    """Effective, permitted and inheritable capabilities: their low halves, then the high ones."""

    _fields_ = (("words", ctypes.c_uint32 * 6),)


class Privileges(NamedTuple):
    """The user of a child, and whether it can gain privileges later."""

    identity: Identity | None = None
    """None: the supervisor's user, with all of its capabilities."""
    no_new_privileges: bool = False
    """Programs that it executes get no more privileges, even with setuid bits (sudo)."""

    @property
    def name(self) -> str:
        """The name of its user, for messages."""
        return f"uid {os.geteuid()}" if self.identity is None else self.identity.name

    def apply(self) -> None:
        """Drop privileges; called in the child. OSError: the kernel does not allow it."""
        if self.identity is not None:
            drop_all = self.identity.uid != 0
            if drop_all and self.no_new_privileges and os.geteuid() == 0:
                _empty_bounding_set()
            _set_ids(self.identity)
            if drop_all:
                _give_up_capabilities()
        if self.no_new_privileges:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)


UNCHANGED: Final = Privileges()


def for_own_programs(config: Config) -> Privileges:
    """Privileges of proxies and the guardian, which never need more than they start with."""
    return Privileges(find(config.user, config.group) if config.user else None, True)


def inaccessible_part(path: Path, mode: int) -> Path | None:
    """The part of the path that this process may not access: itself or a directory above it.

    None: the path is accessible.

    `path` has no symbolic links in it.
    """
    if os.access(path, mode):
        return None
    return next(
        (directory for directory in reversed(path.parents) if not os.access(directory, os.X_OK)),
        path,
    )


def _set_ids(identity: Identity) -> None:
    if os.geteuid() == 0:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def _empty_bounding_set() -> None:
    """Only as far as allowed: without CAP_SETPCAP, no_new_privs has to be enough."""
    for capability in range(_LAST_CAPABILITY + 1):
        with suppress(PermissionError):
            _prctl(_PR_CAPBSET_DROP, capability)


def _give_up_capabilities() -> None:
    header, no_capabilities = _CapHeader(_CAPABILITY_VERSION_3, 0), _CapData()
    if _LIBC.capset(ctypes.byref(header), ctypes.byref(no_capabilities)) != 0:
        _raise_errno()


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        _raise_errno()


def _raise_errno() -> None:
    error_number = ctypes.get_errno()
    raise OSError(error_number, os.strerror(error_number))
