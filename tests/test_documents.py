"""Every file that a document names or links to exists, so that a move leaves no dead end."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    ROOT / "worker" / "penstock_worker",
    ROOT / "proxy" / "penstock_proxy",
    ROOT / "supervisor" / "penstock_supervisor",
)
BASES = (ROOT, ROOT / "tests" / "live", *PACKAGES, *(package.parent for package in PACKAGES))
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")],
    key=str,
)
NAMED = re.compile(r"`((?:[a-z0-9_.]+/)+[a-z0-9_]*(?:\.py|\.md|\.toml)?|[a-z_]+/)`")
LINKED = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


def exists(name: str) -> bool:
    return any((base / name).exists() or (base / f"{name}.py").exists() for base in BASES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=identity)
def test_what_a_document_links_to_exists(document: Path) -> None:
    links = LINKED.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if one.name != "CHANGELOG.md"], ids=identity
)
def test_what_a_document_names_exists(document: Path) -> None:
    # The index of old names is about what is no more.
    text = document.read_text().partition("## Old names")[0]
    names = [name.removeprefix("./") for name in NAMED.findall(text)]
    assert [name for name in names if not exists(name)] == []
