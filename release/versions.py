"""`make test-versions`: the tests of the packages, under every version of Python that is to be had.

Prints one line for each supported version: what its tests came to, or that no interpreter of it
is there. The one that runs this is left out, because `make test` has tested it. So are the live
tests and those of `penstock compare`, and hypothesis tries few examples: what differs between
versions of Python is met by any.

Every module of the packages is imported. With `--quick` only those tests run whose subjects stand
next to the interpreter: sockets, TLS, the event loop, parsers, and descriptors that are passed.
Other words go to pytest.
"""

import subprocess
import sys
import time
from typing import Final

from interpreters import ROOT, find, make_test_venv, outside_environment, supported

_FOLDER: Final = ROOT / ".venv-versions"
_WORDS: Final = ("-c", "constraints.txt", "-e", ".[test,asgi]")
_PYTEST: Final = (
    "-m", "pytest", "--numprocesses=2", "--dist=loadfile", "--quiet", "-p", "no:cacheprovider",
    "--hypothesis-profile=quick", "--ignore=tests/supervisor/compare",
)  # fmt: skip
_ALL: Final = ("tests/worker", "tests/proxy", "tests/supervisor")
_QUICK: Final = (
    "tests/worker/channel", "tests/worker/net", "tests/worker/handoff",
    "tests/proxy/net", "tests/proxy/tls", "tests/proxy/tcp", "tests/proxy/http1/test_parser.py",
)  # fmt: skip
_IMPORT_ALL: Final = """
import importlib, pkgutil
for name in ("penstock_worker", "penstock_proxy", "penstock_supervisor"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def main() -> int:
    failed = False
    for version in supported():
        if version == "{}.{}".format(*sys.version_info):
            line = "tested by make test"
        elif (python := find(version)) is None:
            line = "NOT TESTED: no interpreter of this version is here, and none could be had"
        else:
            line, good = _test(version, python)
            failed = failed or not good
        print(f"Python {version}: {line}", flush=True)
    return failed


def _test(version: str, python: str) -> tuple[str, bool]:
    """What the tests of this interpreter came to, in words, and whether all passed."""
    began = time.monotonic()
    log = _FOLDER / f"{version}.log"
    venv = _FOLDER / version
    _FOLDER.mkdir(exist_ok=True)
    made = make_test_venv(python, venv, *_WORDS)
    others = [word for word in sys.argv[1:] if word != "--quick"]
    chosen = _ALL if others == sys.argv[1:] else _QUICK
    with log.open("w") as file:
        for words in (["-c", _IMPORT_ALL], [*_PYTEST, *chosen, *others]):
            done = subprocess.run(
                [made, *words], cwd=ROOT, env=outside_environment(),
                stdout=file, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                break
    lines = log.read_text().splitlines()
    if done.returncode != 0:
        print("\n".join(lines[-200:]))
    last = lines[-1].strip("= ") if lines else "nothing was printed"
    return f"{last}, {time.monotonic() - began:.0f} s with {python}", done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
