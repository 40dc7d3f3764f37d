"""Says at the end of a run how much was fuzzed: a fuzzer that never ran found nothing either."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        said = [str(value) for name, value in report.user_properties if name == "fuzzed"]
        if said:
            terminalreporter.write_sep("=", "fuzzed")
            terminalreporter.write_line("\n".join(said))
