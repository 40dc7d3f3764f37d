"""Users and groups are looked up on this machine, and similar names are suggested."""

import grp
import os
import pwd

import pytest

from penstock_supervisor.config import users
from penstock_supervisor.config.loader import ConfigError, load
from penstock_supervisor.config.users import Identity, UnknownError

NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwnam("daemon")
UNKNOWN = "4000000000"
US = str(os.geteuid())


def test_a_user_brings_its_group_its_home_and_its_groups() -> None:
    found = users.find("daemon", None)
    assert (found.uid, found.gid, found.name) == (DAEMON.pw_uid, DAEMON.pw_gid, "daemon")
    assert found.home == DAEMON.pw_dir
    assert set(found.groups) == set(os.getgrouplist("daemon", DAEMON.pw_gid))


def test_a_user_can_be_a_number() -> None:
    assert users.find(str(NOBODY.pw_uid), None) == users.find("nobody", None)


def test_a_group_replaces_the_users_own() -> None:
    found = users.find("nobody", "daemon")
    assert found.gid == grp.getgrnam("daemon").gr_gid
    assert found.gid in found.groups
    assert users.find("nobody", str(found.gid)) == found


def test_a_user_without_an_entry_needs_a_group_and_is_in_no_other() -> None:
    found = users.find(UNKNOWN, "daemon")
    assert (found.uid, found.groups) == (int(UNKNOWN), (found.gid,))
    with pytest.raises(UnknownError, match="expected group beside it") as caught:
        users.find(UNKNOWN, None)
    assert caught.value.key == "user"


@pytest.mark.parametrize(
    ("user", "group", "key", "text"),
    [
        ("nobdy", None, "user", 'there is no user "nobdy" on this machine; did you mean "nobody"?'),
        ("nobody", "daemn", "group", 'no group "daemn" on this machine; did you mean "daemon"?'),
    ],
)
def test_a_similar_name_is_suggested_for_an_unknown_one(
    user: str, group: str | None, key: str, text: str
) -> None:
    with pytest.raises(UnknownError) as caught:
        users.find(user, group)
    assert caught.value.key == key
    assert text in str(caught.value)


def test_the_environment_is_the_users_without_variables_of_the_current_session() -> None:
    other = Identity(os.geteuid() + 1, 1, (1,), "x", "/home/x", "/bin/zsh")
    session = {"HOME": "/root", "USER": "root", "PATH": "/bin", "XDG_RUNTIME_DIR": "/run/user/0"}
    assert other.environment(session) == {
        "HOME": "/home/x", "USER": "x", "LOGNAME": "x", "SHELL": "/bin/zsh", "PATH": "/bin",
    }  # fmt: skip
    assert other._replace(uid=os.geteuid()).environment(session) == session


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"user": "nobdy"}, '--user: there is no user "nobdy"'),
        ({"user": "nobody", "group": "daemn"}, '--group: there is no group "daemn"'),
        ({"user": ""}, '--user: expected a name or a number, not ""'),
        ({"user": True}, "--user: expected a name or a number, not true"),
        ({"user": -1}, "--user: expected a name or a number, not -1"),
        ({"user": 1 << 32}, "--user: expected a name or a number up to 4294967294"),
        ({"group": "daemon"}, "--group: only with user"),
    ],
)
def test_a_user_that_cannot_be_used_is_an_error_of_the_configuration(
    keys: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, keys)
    assert problem in str(caught.value)


def test_the_current_user_can_be_given_without_root() -> None:
    found = load(None, {"user": int(US), "group": os.getegid()})
    assert (found.user, found.group) == (US, str(os.getegid()))
