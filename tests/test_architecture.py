"""The code map of ARCHITECTURE.md has every module, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "ARCHITECTURE.md").read_text().partition("## Code map")[2].partition("\n## ")[0]
PACKAGES = ("worker/penstock_worker", "proxy/penstock_proxy", "supervisor/penstock_supervisor")


def mapped(package: str) -> list[str]:
    """Every module of its table, with its folder: `net/stream`."""
    rows = MAP.partition(f"**{package}**")[2].partition("\n**")[0]
    table = re.findall(r"^\| (?:`([a-z\d_/]+/)`|\(top\)) \|(.*)\|$", rows, re.MULTILINE)
    return [folder + name for folder, cell in table for name in re.findall(r"`([a-z]\w*)`", cell)]


def modules(package: str) -> set[str]:
    folder = ROOT / package
    names = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py")}
    return {name for name in names if not name.endswith(("__init__", "__main__"))}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place_in_the_code_map(package: str) -> None:
    assert modules(package) - set(mapped(package)) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_else_is_in_it(package: str) -> None:
    assert set(mapped(package)) - modules(package) == set()
