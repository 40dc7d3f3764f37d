"""The CPython interpreters of this machine that a release is built for and tested with.

Which versions these are is written once, in the classifiers of pyproject.toml. One is looked for by
its name in PATH, among pyenv's, and among uv's, which can download what is not there. It counts if
it runs and says that it is that version: a name alone is often a shim. Free-threaded builds are
others, and not supported.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_DOWNLOAD_S: Final = 120
_PROBE: Final = """
import sys, sysconfig
if sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("%d.%d" % sys.version_info[:2])
"""


def supported() -> list[str]:
    """Such as "3.11", the oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r".* :: (3\.\d+)", one) for one in project["classifiers"])
    return [match[1] for match in found if match]


def find(version: str) -> str | None:
    """The path of an interpreter of this version. May download one with uv."""
    return next((path for path in _candidates(version) if _is_version(path, version)), None)


def make_venv(python: str, folder: Path, *words: str) -> str:
    """A new virtual environment with what `words` tell pip to install; its interpreter."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    made = str(folder / "bin" / "python")
    install = [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    # What is not imported is not compiled, and most is not.
    subprocess.run([*install, "--no-compile"], check=True, cwd=ROOT)
    return made


def make_test_venv(python: str, folder: Path, *words: str) -> str:
    """The same with uv, where it is: its packages are links into one cache, and it has no pip."""
    if (uv := _uv()) is None:
        return make_venv(python, folder, *words)
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    made = str(folder / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", made, *words]
    subprocess.run(install, check=True, cwd=ROOT)
    return made


def outside_environment() -> Mapping[str, str]:
    """Ours, without what would lead another interpreter to this one's packages."""
    dropped = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _candidates(version: str) -> Iterator[str]:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield sys.executable
    name = f"python{version}"
    if (path := shutil.which(name)) is not None:
        yield path
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    yield from sorted(map(str, versions.glob(f"{version}.*/bin/{name}")), reverse=True)
    if (uv := _uv()) is not None:
        _said(uv, "python", "install", "--quiet", version)
        if path := _said(uv, "python", "find", "--no-project", version):
            yield path


def _uv() -> str | None:
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.defpath))
    return shutil.which("uv", path=beside) or shutil.which("uv")


def _is_version(python: str, version: str) -> bool:
    return _said(python, "-I", "-c", _PROBE) == version


def _said(*words: str) -> str:
    """What a program prints; empty if it fails."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
