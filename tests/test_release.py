"""What is built, tested and promised is for the same versions of Python."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "release"))
import interpreters

ROOT = interpreters.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_wheels_are_built_for_each_supported_version_and_for_no_other() -> None:
    supported = interpreters.supported()
    assert PROJECT["project"]["requires-python"] == f">={supported[0]}"
    names = [f"cp{version.replace('.', '')}-manylinux*" for version in supported]
    assert PROJECT["tool"]["cibuildwheel"]["build"] == names


def test_the_readme_names_the_first_and_the_last_of_them_and_the_distribution() -> None:
    supported = interpreters.supported()
    text = (ROOT / "README.md").read_text()
    assert f"CPython {supported[0]} to {supported[-1]}" in text
    name = PROJECT["project"]["name"]
    named = re.findall(r"pip install (?:--no-binary \S+ )?(penstock\S*?)`", text)
    assert set(named) == {name, "penstock"}
    assert "`pip install penstock` installs something else" in text


def test_an_interpreter_counts_if_it_is_that_version_and_not_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "python3.99"
    name.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert interpreters.find("3.99") is None
    own = "{}.{}".format(*sys.version_info)
    assert interpreters.find(own) == sys.executable
