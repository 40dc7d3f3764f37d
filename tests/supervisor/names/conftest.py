"""A name server of the test's own."""

from collections.abc import Iterator

import pytest
from tests.support.supervisor.name_server import NameServer, name_server


@pytest.fixture
def server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server
