"""The directory of the control socket is private or refused, and left unchanged."""

import os
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.config.environment import run_dirs_of
from penstock_supervisor.listeners.control_socket import ControlSocket, RunDir, UnsafeDirectoryError

ROOT = os.geteuid() == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def socket_of_a_killed_run(folder: Path) -> Path:
    """The socket that a killed run left."""
    code = (
        "import os, pathlib, sys\n"
        "from penstock_supervisor.listeners.control_socket import ControlSocket\n"
        "print(ControlSocket(pathlib.Path(sys.argv[1])).path, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 9
    return Path(done.stdout.strip())


def test_a_new_directory_is_private_and_is_removed_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = os.umask(0)
    try:
        control = ControlSocket(folder)
    finally:
        os.umask(before)
    assert (mode(folder), mode(control.path)) == (0o700, 0o600)
    assert control.path == folder / f"{os.getpid()}.sock"
    assert answers(control.path)
    control.close()
    assert not folder.exists()


def test_an_existing_directory_is_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o755)
    with closing(ControlSocket(folder)) as control:
        assert (mode(folder), mode(control.path)) == (0o755, 0o600)
    assert list(folder.iterdir()) == []


def test_several_runs_share_a_directory_and_the_last_one_removes_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    one, other = ControlSocket(folder), ControlSocket(folder)
    assert one.path != other.path
    other.close()
    assert answers(one.path)
    one.close()
    assert not folder.exists()


def test_the_socket_of_a_killed_run_is_removed_and_that_of_a_live_one_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    dead = socket_of_a_killed_run(folder)
    assert dead.exists()
    assert not answers(dead)
    with closing(ControlSocket(folder)) as living:
        assert not dead.exists()
        ControlSocket(folder).close()
        assert answers(living.path)


def test_the_name_of_a_killed_run_is_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    # A process in another container may have had the same pid.
    socket_of_a_killed_run(folder).rename(folder / f"{os.getpid()}.sock")
    with closing(ControlSocket(folder)) as control:
        assert control.name == f"{os.getpid()}.sock"
        assert answers(control.path)


def test_a_path_that_now_belongs_to_another_socket_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    control = ControlSocket(folder)
    control.path.unlink()
    control.path.touch()
    control.close()
    assert control.path.exists()


def test_a_path_may_be_longer_than_107_bytes(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["x" * 60] * 3)
    folder.parent.mkdir(parents=True)
    with closing(ControlSocket(folder)) as control, RunDir(folder, make=False) as found:
        assert found.names() == [control.name]
        found.connect(control.name, 1.0).close()


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UnsafeDirectoryError, match="link: not a directory, or a link to one"):
        ControlSocket(tmp_path / "link")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_dangling_symbolic_link_is_refused_and_its_target_is_not_created(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UnsafeDirectoryError):
        ControlSocket(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused_and_not_changed(
    tmp_path: Path, bits: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(UnsafeDirectoryError, match=f"others may write to it .mode {bits:04o}"):
        ControlSocket(folder)
    assert mode(folder) == bits


@pytest.mark.skipif(not ROOT, reason="needs root, to give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(UnsafeDirectoryError, match=r"run: belongs to uid 65534, and we are uid 0"):
        ControlSocket(folder)
    # Root may read this directory, but creates nothing in it.
    with RunDir(folder, make=False) as found:
        assert found.owner == 65534


def test_a_directory_that_cannot_be_created_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ControlSocket(tmp_path / "no" / "run")


def test_the_default_directory_belongs_to_the_user() -> None:
    assert run_dirs_of(0, "/run/user/1000")[0] == Path("/run/penstock")
    assert run_dirs_of(1000, "/run/user/1000") == (
        Path("/run/user/1000/penstock"),
        Path("/tmp/penstock-1000"),
    )
    assert run_dirs_of(1000, "") == (Path("/tmp/penstock-1000"),)
    assert run_dirs_of(1000, "here") == (Path("/tmp/penstock-1000"),)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = descriptors()
    ControlSocket(tmp_path / "run").close()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UnsafeDirectoryError):
        ControlSocket(tmp_path / "link")
    assert descriptors() == before
