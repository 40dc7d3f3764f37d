"""What every test may rely on: `needs` says which outside programs a test is about, `root` that
it is about what only root can do.

A person without nginx or Prometheus should still see the suite pass, so such a test is
skipped for them. Where CI=true it fails: a proof that is skipped everywhere proves nothing.
"""

import os
import shutil

import pytest

# Debian keeps servers in /usr/sbin, which is not in everybody's PATH.
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [program for marker in item.iter_markers("needs") for program in marker.args]
    missing = [program for program in wanted if shutil.which(program, path=PATH) is None]
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"needs {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI has to install what the tests need", pytrace=False)
    pytest.skip(reason)
