"""Whoever can write the configuration of root's run is named once, and others are not."""

import os
import stat
from pathlib import Path

import pytest
from tests.support.supervisor.config_files import APP

from penstock_supervisor.config.environment import sudo_caller
from penstock_supervisor.config.file_trust import Permissions, warnings, who_can_write
from penstock_supervisor.config.loader import load

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "who"),
    [
        (0, 0, FILE | 0o644, ""),
        (0, 0, FILE | 0o664, ""),
        (0, 33, FILE | 0o644, ""),
        (0, 33, FILE | 0o664, "group 33 can write it"),
        (0, 0, FILE | 0o646, "everybody can write it"),
        (0, 33, FILE | 0o666, "everybody can write it"),
        (1000, 1000, FILE | 0o600, ""),
        (33, 33, FILE | 0o600, "it belongs to user 33"),
        (33, 33, FOLDER | 0o755, "it belongs to user 33"),
        (0, 0, FOLDER | 0o777, "everybody can write it"),
        (0, 0, FOLDER | stat.S_ISVTX | 0o777, ""),
        (0, 33, FOLDER | stat.S_ISVTX | 0o770, ""),
        # On a file the bit means nothing.
        (0, 0, FILE | stat.S_ISVTX | 0o666, "everybody can write it"),
    ],
)
def test_who_can_write_beside_those_that_are_trusted(
    uid: int, gid: int, mode: int, who: str
) -> None:
    assert who_can_write(Permissions(uid, gid, mode), {0, 1000}) == who


def found(path: Path) -> list[str]:
    return list(warnings(path, load(path, {})))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.toml"
    path.write_text(APP)
    path.chmod(0o644)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned")
def test_one_line_for_a_file_or_a_folder_that_others_can_write(file: Path) -> None:
    ends = "who can write it can start programs as root"
    assert found(file) == []
    file.chmod(0o666)
    assert found(file) == [f"everybody can write it: {ends}"]
    file.chmod(0o644)
    file.parent.chmod(0o777)
    assert found(file) == [f"its folder: everybody can write it: {ends}"]
    file.parent.chmod(0o1777)
    assert found(file) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned")
def test_the_file_behind_a_link_counts_and_the_folder_of_the_link_as_well(
    file: Path, tmp_path: Path
) -> None:
    link = tmp_path / "links" / "current.toml"
    link.parent.mkdir(mode=0o755)
    link.symlink_to(file)
    assert found(link) == []
    link.parent.chmod(0o777)
    assert "its folder: everybody" in found(link)[0]
    link.parent.chmod(0o755)
    os.chown(file, 12345, 0)
    assert "it belongs to user 12345" in found(link)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned")
def test_the_user_of_the_run_and_the_caller_of_sudo_may_have_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(file, 12345, 0)
    assert found(file)
    monkeypatch.setenv("SUDO_UID", "12345")
    assert found(file) == []
    monkeypatch.setenv("SUDO_UID", "12346")
    assert found(file)
    file.write_text('user = "12345"\ngroup = "12345"\n' + APP)
    assert found(file) == []


@pytest.mark.parametrize("uid", ["", "x", "-1", "²"])
def test_a_variable_of_sudo_that_is_no_number_trusts_nobody(
    uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    assert sudo_caller() == ()


def test_somebody_else_than_root_is_not_warned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found(file) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned")
def test_a_file_that_is_gone_again_is_no_error(file: Path) -> None:
    config = load(file, {})
    file.unlink()
    assert list(warnings(file, config)) == []
