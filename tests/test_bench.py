"""Every case of `make bench` still runs, and leaves things as they were. Nobody looks at times."""

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
CASES: dict[str, Any] = runpy.run_path(str(BENCH / "cases.py"))["CASES"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_can_be_repeated(name: str) -> None:
    with CASES[name]() as step:
        kinds = {type(step()) for _ in range(5)}
    assert len(kinds) == 1, "the fifth time is as the first"
