"""A run of the first version, which a test then brings to another one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.versions import HEALTH, QUICK, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

FirstVersion = Callable[..., "Cluster"]


@pytest.fixture
def first_version(penstock: "Penstock", tmp_path: "Path") -> FirstVersion:
    """Two workers under a scheme: `first_version("handoff", workers=4)`."""

    def make(scheme: str, **keys: Any) -> "Cluster":
        write(tmp_path, "good v1")
        given = {"workers": 2, "health": HEALTH, "rollout": QUICK, "access_log": "off", **keys}
        top = {"run_dir": str(tmp_path / "run")}
        run = penstock(app="program:app", scheme=scheme, top=top, **given)
        # What a new version says before it ends is logged by us.
        run.may_trace = True
        return run

    return make
