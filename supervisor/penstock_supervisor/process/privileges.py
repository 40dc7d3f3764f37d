"""What a child is allowed, and how it becomes that between fork and exec.

Owns the order of the system calls, which is the whole matter: the bounding set can only be
emptied by who still is root; groups go before the user, who may not change them; whatever
capability is left goes after the user, because ambient and inheritable ones outlive him; the
promise never to gain any is last, and nobody takes it back. `spawn` asks for the signal
at our death after all of it, since a change of user forgets that.

By system calls and not by Popen's own arguments: those come before a function of ours is
called, and then it is too late for the bounding set.
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
# Loaded before any fork: between fork and exec nothing may be imported or looked up.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _last_capability() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 40


_LAST_CAPABILITY: Final = _last_capability()


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Effective, permitted and inheritable, low half and high half."""

    _fields_ = (("words", ctypes.c_uint32 * 6),)


class Privileges(NamedTuple):
    """As whom a child runs, and what it may become later."""

    identity: Identity | None = None
    """None: as whom we run, with all that we have."""
    no_new: bool = False
    """What it executes gives it no more than it has, whatever bits the file has (sudo)."""

    @property
    def name(self) -> str:
        """Of whom it runs as, for people."""
        return f"uid {os.geteuid()}" if self.identity is None else self.identity.name

    def take_effect(self) -> None:
        """In the child. OSError says what the kernel does not let us do."""
        if self.identity is not None:
            drops = self.identity.uid != 0
            if drops and self.no_new and os.geteuid() == 0:
                _empty_bounding_set()
            _become(self.identity)
            if drops:
                _give_up_capabilities()
        if self.no_new:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)


AS_WE_ARE: Final = Privileges()


def of(config: Config) -> Privileges:
    """What our own children have. Nothing of ours ever needs more than it was started with."""
    return Privileges(find(config.user, config.group) if config.user else None, True)


def closed(path: Path, mode: int) -> Path | None:
    """What keeps this process from it: itself or a directory above; None: nothing does.

    `path` has no symbolic links in it.
    """
    if os.access(path, mode):
        return None
    return next((up for up in reversed(path.parents) if not os.access(up, os.X_OK)), path)


def _become(identity: Identity) -> None:
    if os.geteuid() == 0:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def _empty_bounding_set() -> None:
    """As far as we may: without CAP_SETPCAP the promise to gain nothing has to do."""
    for capability in range(_LAST_CAPABILITY + 1):
        with suppress(PermissionError):
            _prctl(_PR_CAPBSET_DROP, capability)


def _give_up_capabilities() -> None:
    header, none = _Header(_CAPABILITY_VERSION_3, 0), _Sets()
    if _LIBC.capset(ctypes.byref(header), ctypes.byref(none)) != 0:
        _fail()


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        _fail()


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
