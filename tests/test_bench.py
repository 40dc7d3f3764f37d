"""Every case of `make bench` still runs, and leaves things as they were. Nobody looks at times."""

import runpy
from typing import Any

import pytest

CASES: dict[str, Any] = runpy.run_path("bench/cases.py")["CASES"]


@pytest.mark.parametrize("name", CASES)
def test_a_step_can_be_repeated(name: str) -> None:
    with CASES[name]() as step:
        for _ in range(5):
            step()
