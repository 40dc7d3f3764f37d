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


def test_the_list_of_decisions_has_the_title_of_each_record_and_every_number() -> None:
    folder = ROOT / "docs" / "decisions"
    text = (folder / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    files = {path.name: path.read_text() for path in sorted(folder.glob("[0-9]*.md"))}
    assert [name for _, name, _, _ in rows] == list(files)
    for number, name, title, status in rows:
        assert name.startswith(f"{number}-")
        assert files[name].startswith(f"# {number}: {title}\n\nStatus: {status.split(',')[0]}")
    unused = re.findall(r"The number (\d{4}) is not used", text)
    numbers = sorted([int(row[0]) for row in rows] + [int(number) for number in unused])
    assert numbers == list(range(1, len(numbers) + 1))
