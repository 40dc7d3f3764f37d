"""The code map of ARCHITECTURE.md has every module, and no other."""

import ast
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


def names_in_tests() -> set[str]:
    """What test files say in their docstrings that they cover."""
    named: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        for line in re.findall(r"^Covers (.+?)\.?$", text, re.MULTILINE):
            named |= set(re.findall(r"`([a-z_/\d]+)`", line))
    return named


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_test_of_its_name_or_is_named_by_the_test_that_covers_it(
    package: str,
) -> None:
    tests = ROOT / "tests" / package.partition("/")[0]
    covered = names_in_tests()
    without = {
        name
        for name in modules(package)
        if not (tests / name).with_name(f"test_{Path(name).name}.py").exists()
    }
    assert without - covered == set()
