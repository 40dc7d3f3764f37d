"""The directory of workers' sockets is private, and leaves nothing behind."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Service
from penstock_supervisor.config.users import find
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.control_socket import ControlSocket
from penstock_supervisor.listeners.worker_sockets import WorkerSockets

NOBODY = find("nobody", None)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory: the path of a socket has at most 107 bytes, and `tmp_path` may take them all."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def control(short_path: Path) -> Iterator[ControlSocket]:
    with closing(ControlSocket(short_path / "run")) as control:
        yield control


def services(**keys: object) -> list[Service]:
    return [Service.model_validate({"name": "web", "listen": "127.0.0.1:1", **keys})]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_it_is_private_and_gone_at_the_end(control: ControlSocket) -> None:
    before = os.umask(0o277)
    try:
        sockets = WorkerSockets(control, None)
    finally:
        os.umask(before)
    assert sockets.path == control.path.parent / f"{os.getpid()}.workers"
    assert mode(sockets.path) == 0o700
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(sockets.path / "8101.sock"))
    sockets.close()
    assert not sockets.path.exists()


def test_what_a_worker_left_is_removed_whatever_it_is(control: ControlSocket) -> None:
    with closing(WorkerSockets(control, None)) as sockets:
        assert sockets.path is not None
        path = sockets.path / "8101.sock"
        leave: list[Callable[[], None]] = [
            path.touch,
            lambda: path.symlink_to("/nowhere"),
            lambda: None,
        ]
        for left in leave:
            left()
            sockets.clear(Address(path=str(path)))
            assert not os.path.lexists(path)
        path.mkdir()
        with pytest.raises(OSError, match="directory"):
            sockets.clear(Address(path=str(path)))
        path.rmdir()


def test_directories_of_killed_runs_are_removed_and_no_others(control: ControlSocket) -> None:
    run_dir = control.path.parent
    stale, other = run_dir / "1.workers", run_dir / "2.workers"
    for directory in (stale, other):
        directory.mkdir()
        (directory / "8101.sock").touch()
    (run_dir / "2.sock").touch()
    (run_dir / "notes.workers").symlink_to(other)
    # Of a run with our own pid, as in a container.
    (run_dir / f"{os.getpid()}.workers").mkdir()
    (run_dir / f"{os.getpid()}.workers" / "8101.sock").touch()
    with closing(WorkerSockets(control, None)) as sockets:
        assert sockets.path is not None
        assert not stale.exists()
        assert (other / "8101.sock").exists()
        assert list(sockets.path.iterdir()) == []


def test_without_a_run_dir_auto_means_ports_and_unix_is_refused() -> None:
    with closing(WorkerSockets(None, None)) as sockets:
        assert sockets.path is None
        sockets.check(services(app="demo:app"))
        with pytest.raises(StartError, match="no unix sockets here: the run has no run_dir"):
            sockets.check(services(command=["node"], link="unix"))


def test_a_path_that_is_too_long_is_none(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    with closing(ControlSocket(folder)) as control, closing(WorkerSockets(control, None)) as none:
        assert none.path is None
        with pytest.raises(StartError, match="is too long for the path of a socket"):
            none.check(services(app="demo:app", link="unix"))


@needs_root
def test_another_user_owns_it_and_may_pass_to_it() -> None:
    run_dir = Path(f"/tmp/penstock-test-{os.getpid()}")
    with closing(ControlSocket(run_dir)) as control:
        assert mode(run_dir) == 0o700
        with closing(WorkerSockets(control, NOBODY)) as sockets:
            assert sockets.path is not None
            assert (mode(run_dir), mode(sockets.path)) == (0o711, 0o700)
            assert sockets.path.stat().st_uid == NOBODY.uid
            assert mode(control.path) == 0o600
    assert not run_dir.exists()


@needs_root
def test_a_user_who_may_not_pass_gets_no_socket(short_path: Path) -> None:
    with (
        closing(ControlSocket(short_path / "run")) as control,
        closing(WorkerSockets(control, NOBODY)) as sockets,
    ):
        assert sockets.path is None
        with pytest.raises(StartError, match="nobody may not pass through"):
            sockets.check(services(app="demo:app", link="unix"))
