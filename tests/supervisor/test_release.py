"""What is said of the build is true of the build, and names the way to the other one."""

from importlib.machinery import ModuleSpec

import pytest

from penstock_supervisor import release


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("/lib/socket_transport.py", "(pure Python; make wheel "),
        ("/lib/socket_transport.cpython-313-x86_64-linux-gnu.so", "(compiled; pure Python is pip "),
    ],
)
def test_the_build_is_told_by_what_is_imported(
    monkeypatch: pytest.MonkeyPatch, origin: str, said: str
) -> None:
    monkeypatch.setattr(release, "find_spec", lambda name: ModuleSpec(name, None, origin=origin))
    assert release.describe().startswith(f"penstock {release.version()} {said}")
