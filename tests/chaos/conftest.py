"""How long a storm lasts, its seed, and its report at the end.

    pytest tests/chaos                                    about a minute, always the same seed
    make chaos SECONDS=3600                               an hour, from a seed of its own
    pytest tests/chaos --chaos-seed=7 --chaos-seconds=9   that one again

The seed decides what every client asks, what every worker does wrong, and which fault comes
when. The machine decides what coincides.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.chaos.ledger import Ledger
from tests.support.live.cluster import Cluster

SEED: Final = 20_250_101
SECONDS: Final = 25.0
"""Of storm, in all; what is swept through comes on top."""

Start = Callable[..., Cluster]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos-seed", default=str(SEED), help="a number, or `random`")
    group.addoption("--chaos-seconds", type=float, default=SECONDS, help="of storm, in all")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--chaos-seed") == "random":
        config.option.chaos_seed = str(random.SystemRandom().randrange(1 << 32))


def _words(config: pytest.Config) -> str:
    option = config.getoption
    return f"--chaos-seed={option('--chaos-seed')} --chaos-seconds={option('--chaos-seconds'):g}"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--chaos-seed"))


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config) -> float:
    """Of storm, in all storms together."""
    return float(pytestconfig.getoption("--chaos-seconds"))


@pytest.fixture
def ledger(
    record_property: Callable[[str, object], None], pytestconfig: pytest.Config
) -> Iterator[Ledger]:
    """The account of one test; the session adds them up, however the test ends."""
    account = Ledger()
    yield account
    record_property("chaos", (account.plain(), _words(pytestconfig)))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Makes a run: `start(web={...}, raw={...})`."""
    with ExitStack() as stack:

        def make(*, proxies: int = 1, **services: Mapping[str, Any]) -> Cluster:
            made = Cluster(tmp_path, services, top={"proxies": proxies} if proxies > 1 else None)
            stack.callback(made.close)
            return made

        yield make
