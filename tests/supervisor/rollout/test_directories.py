"""Where programs are started: links are resolved when a configuration is read, and only then."""

from pathlib import Path

import pytest

from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.rollout.directories import Directories, problems


def config(directory: str | None = None, **keys: object) -> Config:
    service = {"name": "web", "listen": "127.0.0.1:0", "app": "a:b", "directory": directory, **keys}
    return Config(services=(Service.model_validate(service),))


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to the first of two releases."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    link = tmp_path / "current"
    link.symlink_to("1")
    return link


def swap(link: Path) -> None:
    link.unlink()
    link.symlink_to("2")


def test_a_swapped_link_leads_to_the_next_release(current: Path) -> None:
    directories = Directories(None)
    assert directories.resolve(config(str(current))) == {"web": str(current.parent / "1")}
    swap(current)
    assert directories.resolve(config(str(current))) == {"web": str(current.parent / "2")}


def test_the_link_that_the_shell_followed_is_followed_again(
    current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(current)
    directories = Directories(str(current))
    swap(current)
    assert directories.resolve(config()) == {"web": str(current.parent / "2")}
    (current.parent / "2/app").mkdir()
    assert directories.resolve(config("app")) == {"web": str(current.parent / "2/app")}


@pytest.mark.parametrize("pwd", [None, "", "relative", "/", "/nowhere"])
def test_a_pwd_that_leads_elsewhere_is_not_used(
    current: Path, monkeypatch: pytest.MonkeyPatch, pwd: str | None
) -> None:
    monkeypatch.chdir(current)
    assert Directories(pwd).resolve(config()) == {"web": str(current.parent / "1")}


def test_a_deleted_directory_is_an_error_only_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    directories = Directories(str(deleted))
    with pytest.raises(StartError, match=r"service\.web\.directory: .*deleted"):
        directories.resolve(config("app"))
    assert directories.resolve(config(str(tmp_path))) == {"web": str(tmp_path)}
    assert directories.resolve(config(app=None, upstreams=["127.0.0.1:9"])) == {}


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, what in (("gone", "no such directory"), ("file", "not a directory")):
        path = str(tmp_path / name)
        services = config(path).services
        assert [*problems({"web": path}, services)] == [f'service.web.directory: "{path}": {what}']
    assert not [*problems({"web": str(tmp_path)}, config().services)]
