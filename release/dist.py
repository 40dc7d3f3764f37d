"""`make dist`: all that is uploaded and can be built here, in dist/, each file checked.

That is the sdist, the pure wheel, and a compiled wheel for each supported version of Python
that is to be had. All are built from the sdist, so what the sdist lacks is noticed. Each wheel is
installed into a fresh environment and has to say which build it is.

A compiled wheel from here has this machine's platform, as `linux_x86_64`, which an index takes from
nobody. Those for the index are built by .github/workflows/wheels.yml, in old images.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from packaging.metadata import Metadata

from interpreters import ROOT, find, make_venv, outside_environment, supported

_DIST: Final = ROOT / "dist"
_CONSTRAINTS: Final = str(ROOT / "constraints.txt")


def main() -> None:
    shutil.rmtree(_DIST, ignore_errors=True)
    hatchling = [sys.executable, "-m", "hatchling", "build", "--directory", str(_DIST)]
    subprocess.run([*hatchling, "--target", "sdist"], cwd=ROOT, check=True, stdout=sys.stderr)
    (sdist,) = _DIST.glob("*.tar.gz")
    _check_metadata(sdist)
    print(f"{sdist.name}: {sdist.stat().st_size >> 10} KiB", flush=True)
    for version, python in (("pure", sys.executable), *_interpreters()):
        wheel = _build(sdist, python, compiled=version != "pure")
        _check_metadata(wheel)
        said = _installed(wheel, python)
        print(f"{wheel.name}: {wheel.stat().st_size >> 10} KiB, {said}", flush=True)


def _interpreters() -> Iterator[tuple[str, str]]:
    for version in sys.argv[1:] or supported():
        if (python := find(version)) is None:
            print(f"Python {version}: NOT BUILT: no interpreter of this version is to be had")
        else:
            yield version, python


def _build(sdist: Path, python: str, *, compiled: bool) -> Path:
    """The wheel that this interpreter makes of the sdist."""
    with TemporaryDirectory(prefix="penstock-") as folder:
        made = make_venv(python, Path(folder, "venv"), "pip")
        # pip hands its constraints to the environment that it builds in only by this variable.
        environment = {**outside_environment(), "PIP_CONSTRAINT": _CONSTRAINTS}
        if compiled:
            environment["HATCH_BUILD_HOOKS_ENABLE"] = "1"
        words = (made, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
        subprocess.run([*words, "--wheel-dir", folder, sdist], env=environment, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        return Path(shutil.move(wheel, _DIST / wheel.name))


def _check_metadata(path: Path) -> None:
    """As an index does: every field is one that the standard has, and valid. ExceptionGroup."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
            data = wheel.read(name)
    else:
        with tarfile.open(path) as sdist:
            folder = path.name.removesuffix(".tar.gz")
            file = sdist.extractfile(f"{folder}/PKG-INFO")
            assert file is not None
            data = file.read()
    metadata = Metadata.from_email(data, validate=True)
    assert metadata.description, f"{path.name}: no README"
    assert metadata.description_content_type == "text/markdown"


def _installed(wheel: Path, python: str) -> str:
    """Install it where nothing else is; what its command says of it."""
    with TemporaryDirectory(prefix="penstock-") as folder:
        make_venv(python, Path(folder), "-c", _CONSTRAINTS, str(wheel))
        done = subprocess.run(
            [Path(folder, "bin", "penstock"), "--version"],
            cwd=os.sep, env=outside_environment(), check=True, capture_output=True, text=True,
        )  # fmt: skip
    said = done.stdout.strip()
    build = "pure Python" if wheel.name.endswith("-py3-none-any.whl") else "compiled"
    assert f"({build};" in said, f"{wheel.name}: {said}"
    return said.partition("; ")[0] + ")"


if __name__ == "__main__":
    main()
