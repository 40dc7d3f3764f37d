"""Writes the known tricks into the corpus: `python -m tests.fuzz.seed`.

The corpus is made of files because a fuzzer needs files, and because every finding is kept.
Other files are not changed: `learned-` are inputs that libFuzzer kept from its first million
executions, because they reach code that no trick reaches.
"""

import re
from pathlib import Path
from typing import Final

from tests.fuzz.oracle import MAX_INPUT
from tests.proxy.http1.test_smuggling_passed import PASSED
from tests.proxy.http1.test_smuggling_responses import TOO_MUCH, WHOLE
from tests.support.grammar import Row
from tests.support.grammar.requests import REQUESTS as REQUEST_ROWS
from tests.support.grammar.responses import RESPONSES as RESPONSE_ROWS
from tests.support.smuggling.chunks import BODIES, REQUEST_BODIES
from tests.support.smuggling.requests import REQUESTS
from tests.support.smuggling.responses import CHUNKED, FORGED, REFUSED

CORPUS: Final = Path(__file__).parent / "corpus"


def seeds() -> dict[Path, bytes]:
    """The files that the corpus must have; a response's first byte is the oracle's mode."""
    requests = {name: trick.data for name, trick in REQUESTS.items()}
    requests |= {f"passed {name}": row[0] for name, row in PASSED.items()}
    requests |= _rows(REQUEST_ROWS, b"")
    responses = {name: b"0" + response for name, (response, _) in REFUSED.items()}
    responses |= _rows(RESPONSE_ROWS, b"0")
    bodies = BODIES | REQUEST_BODIES
    responses |= {f"chunk {name}": b"0" + CHUNKED + body for name, (body, _) in bodies.items()}
    responses |= {
        f"whole {name}": (b"1" if name == "HEAD" else b"0") + row[1] for name, row in WHOLE.items()
    }
    responses |= {
        f"too much {name}": (b"1" if row[0].startswith(b"HEAD") else b"0") + row[1] + FORGED
        for name, row in TOO_MUCH.items()
    }
    responses |= {f"cut {name}": b"0" + row[1][:-3] for name, row in WHOLE.items()}
    return {
        CORPUS / kind / re.sub(r"\W+", "-", name).strip("-").lower(): data
        for kind, table in (("requests", requests), ("responses", responses))
        for name, data in table.items()
        if len(data) <= MAX_INPUT
    }


def _rows(table: dict[str, Row], mode: bytes) -> dict[str, bytes]:
    return {
        f"row {name} {number}": mode + sent
        for name, row in table.items()
        for number, (sent, _) in enumerate(row.examples)
    }


def main() -> None:
    for path, data in seeds().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
