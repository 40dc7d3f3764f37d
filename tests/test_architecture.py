"""The code map of ARCHITECTURE.md has every module, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "ARCHITECTURE.md").read_text().partition("## Code map")[2].partition("\n## ")[0]
PACKAGES = ("worker/penstock_worker", "proxy/penstock_proxy", "supervisor/penstock_supervisor")


def mapped(package: str) -> list[str]:
    rows = MAP.partition(f"**{package}**")[2].partition("\n**")[0]
    return re.findall(r"`([a-z]\w*)`", "\n".join(re.findall(r"^\|.*\|$", rows, re.MULTILINE)))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place_in_the_code_map(package: str) -> None:
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert modules - set(mapped(package)) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_else_is_in_it(package: str) -> None:
    modules = {path.stem for path in (ROOT / package).glob("*.py")}
    # The program that a worker serves is named, too.
    assert set(mapped(package)) - modules <= {"app"}
