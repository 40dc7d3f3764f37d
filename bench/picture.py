"""Takes the picture of README.md from a page, and prints its table: the end of `make picture`.

    python bench/picture.py dist/compare.json dist/compare.html docs/compare.png

The picture ends where the first part of the page does, and the page says where that is: it depends
on how many subjects there are and how long their sentences are. The table goes to stdout and has
the figures of the same run, so the two cannot differ. Measures nothing.
"""

import argparse
import re
import subprocess  # noqa: TID251 — outside of the packages, it starts the browser
from pathlib import Path
from typing import Final

from penstock_supervisor.compare.charts import markdown
from penstock_supervisor.compare.report import baseline

WIDTH: Final = 1240
BELOW: Final = 12
"""Pixels of space under what comes first."""
TALL: Final = 2000
"""Of the window in which the page is measured."""
CHROMIUM: Final = ("chromium", "--headless", "--no-sandbox", "--hide-scrollbars")


def main() -> None:
    parser = argparse.ArgumentParser(description="the picture of README.md, and its table")
    for name in ("result", "page", "picture"):
        parser.add_argument(name, type=Path)
    files = parser.parse_args()
    comparison = baseline.load(files.result)
    take(files.page, files.picture)
    print(*markdown.render(comparison), sep="\n")


def take(page: Path, picture: Path) -> None:
    """What comes first on the page, at two pixels for each of its own."""
    drawn = _chromium(TALL, "--virtual-time-budget=20000", "--dump-dom", page.absolute().as_uri())
    ends = re.search(r'id="picture" data-end="(\d+)"', drawn)
    if ends is None:
        raise SystemExit(f"{page} does not say where its picture ends: has its script run?")
    _chromium(
        int(ends[1]) + BELOW,
        "--force-device-scale-factor=2",
        f"--screenshot={picture.absolute()}",
        page.absolute().as_uri(),
    )


def _chromium(height: int, *arguments: str) -> str:
    command = (*CHROMIUM, f"--window-size={WIDTH},{height}", *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
