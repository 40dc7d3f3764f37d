"""What every test may rely on: `needs` says which outside programs a test is about, `root` that
it is about what only root can do.

A person without nginx or Prometheus should still see the suite pass, so such a test is
skipped for them. Where CI=true it fails: a proof that is skipped everywhere proves nothing.
For the same reason the end of a run says how much was fuzzed, and what the storms came to.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from tests.support.chaos.ledger import Ledger

from penstock_supervisor.logging_setup import ThreadHandler

# No test says how long anything may take, and where CI=true each run is the same as the last.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("penstock"), derandomize=True, database=None)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "penstock")

# Images of containers set it. Each of the thousands of processes that tests start would compile
# all that it imports, which is half of what its start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell without job control starts in the background what ignores them, and so would all that a
# test starts.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# Debian keeps servers in /usr/sbin, which is not in everybody's PATH.
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@pytest.fixture(autouse=True)
def logging_is_left_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets it up for all that come after."""
    loggers = [logging.getLogger(), logging.getLogger("asyncio")]
    before = [(logger, logger.level, tuple(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for handler in tuple(logger.handlers):
            # pytest has others, and another one for each phase of a test.
            ours = type(handler) in (logging.StreamHandler, ThreadHandler)
            if ours and handler not in handlers:
                logger.removeHandler(handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [program for marker in item.iter_markers("needs") for program in marker.args]
    missing = [program for program in wanted if shutil.which(program, path=PATH) is None]
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"needs {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI has to install what the tests need", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Reports alone come from the processes that tests run in.
    total, again = Ledger(), ""
    for reports in terminalreporter.stats.values():
        for name, said in _properties(reports):
            if name == "fuzzed":
                terminalreporter.write_line(f"fuzz: {said}")
            elif name == "chaos":
                account, again = said
                total.add(Ledger.from_plain(account))
    if total.sent:
        faults = f"{total.faults.total():,} faults: {total.most_common_faults()}"
        terminalreporter.write_line(f"chaos: {total}")
        terminalreporter.write_line(f"chaos: {faults}")
        terminalreporter.write_line(f"chaos: again with: pytest tests/chaos {again}")


def _properties(reports: list[object]) -> Iterator[tuple[str, Any]]:
    for report in reports:
        if isinstance(report, pytest.TestReport) and report.when == "teardown":
            yield from report.user_properties


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a loop of each kind; the test closes it."""
    make: Callable[[], asyncio.AbstractEventLoop] = request.param
    # The first loop of a kind opens descriptors that stay.
    make().close()
    return make
