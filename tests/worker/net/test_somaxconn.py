"""The listen backlog is the default, or the kernel's limit if that is lower."""

from pathlib import Path

import pytest

from penstock_worker.net import somaxconn
from penstock_worker.net.somaxconn import BACKLOG, max_backlog


@pytest.mark.parametrize(
    ("text", "length"),
    [("1\n", 1), ("4095\n", 4095), ("65536\n", BACKLOG), ("", BACKLOG), ("x", BACKLOG)],
)
def test_the_backlog_is_the_lower_of_the_default_and_the_kernels_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, length: int
) -> None:
    limit = tmp_path / "somaxconn"
    limit.write_text(text)
    monkeypatch.setattr(somaxconn, "_LIMIT", limit)
    assert max_backlog() == length


def test_without_a_kernel_limit_the_backlog_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(somaxconn, "_LIMIT", tmp_path / "nothing")
    assert max_backlog() == BACKLOG
