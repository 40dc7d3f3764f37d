"""Search for bytes that break the oracle: `python -m tests.fuzz requests [options of libFuzzer]`.

Without `-max_total_time` it runs until it finds something or is stopped. A finding is written to
`-artifact_prefix`, and belongs into the corpus when the bug is fixed. With the name of a file it
tries only that.
"""

import logging
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["penstock_proxy"], enable_loader_override=False):
    from tests.fuzz import oracle

CORPUS = Path(__file__).parent / "corpus"
CHECKS = {"requests": oracle.check_request, "responses": oracle.check_response}


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in CHECKS:
        raise SystemExit(
            f"usage: python -m tests.fuzz {'|'.join(CHECKS)} [-option ...] [folder ...]"
        )
    logging.disable()
    stage, check = oracle.Stage(), CHECKS[name]
    if all(option.startswith("-") for option in options):
        options = [*options, str(CORPUS / name)]
    atheris.Setup(
        [sys.argv[0], f"-max_len={oracle.MAX_INPUT}", *options], lambda data: check(stage, data)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
