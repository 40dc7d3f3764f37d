"""A group whose leader is gone: whether it exists, who is in it, and nobody else is signalled."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support.live.wire import until

from penstock_supervisor.kernel import process_groups
from penstock_supervisor.kernel.process_groups import Member, parse_stat


@pytest.fixture
def group() -> Iterator[int]:
    """A group with one member, whose leader was reaped."""
    leader = subprocess.Popen(["sh", "-c", "sleep 1000 & exit"], start_new_session=True)
    leader.wait()
    yield leader.pid
    process_groups.kill(leader.pid, signal.SIGKILL)


def test_a_group_outlives_its_leader_and_ends_with_its_last_member(group: int) -> None:
    assert process_groups.exists(group)
    # Between its fork and its exec it is still the shell.
    until(lambda: [one.name for one in process_groups.living_members(group) or ()] == ["sleep"])
    process_groups.kill(group, signal.SIGTERM)
    until(lambda: not process_groups.living_members(group))


def test_a_group_without_members_does_not_exist() -> None:
    leader = subprocess.Popen(["true"], start_new_session=True)
    leader.wait()
    assert not process_groups.exists(leader.pid)
    assert process_groups.living_members(leader.pid) == []


def test_a_process_with_the_leaders_number_means_that_the_group_has_ended() -> None:
    """The kernel gives a number away only if no group has it."""
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
    )
    try:
        assert not process_groups.exists(stranger.pid)
        process_groups.kill(stranger.pid, signal.SIGKILL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"7 (sleep) S 1 5 5 0 -1", ("sleep", "S", 5)),
        (b"7 (a) b (c)) Z 1 12 5 0 -1", ("a) b (c)", "Z", 12)),
        (b"7 (\xff\n) R 1 3 5", ("\ufffd\n", "R", 3)),
    ],
)
def test_a_name_may_have_any_characters(line: bytes, expected: tuple[str, str, int]) -> None:
    assert parse_stat(line) == expected


def test_a_member_is_named_with_its_pid() -> None:
    assert str(Member(os.getpid(), "x")) == f"x (pid {os.getpid()})"
