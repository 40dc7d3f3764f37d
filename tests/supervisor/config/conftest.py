"""Files of configuration that a test writes."""

from pathlib import Path

import pytest
from tests.support.supervisor.config_files import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "penstock.toml"
        path.write_text(text)
        return path

    return write
