"""What clients and workers of a storm have agreed on, so that either can check the other.

A request has a name, and its whole answer follows from the name: a client knows each byte that
it has to get. Which worker misbehaves, and how, follows from the seed, the worker's slot and the
name.
"""

import os
import random
import zlib
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Final

FORMS: Final = ("sized", "chunked", "until-close")
GOOD: Final = 2
"""The first slots never do wrong by themselves; the first is not even killed."""
HTTP_FAULTS: Final = (
    "silence", "reset", "garbage", "two framings", "cut", "cut by a reset", "half-close",
    "surplus", "drip", "never", "blocked", "death", "interim", "flood", "early",
)  # fmt: skip
DIRECT_FAULTS: Final = (
    "silence", "reset", "cut", "cut by a reset", "half-close", "drip", "blocked", "death",
)  # fmt: skip
"""For a faulty worker without a proxy before it: nothing that is not HTTP."""
TCP_FAULTS: Final = ("cut", "cut by a reset", "half-close", "blocked", "death", "drip")
DIARY: Final = "CHAOS_DIARY"
"""Names the variable with the path of the file where workers note what they do wrong."""
BROKEN: Final = "CHAOS_BROKEN"
"""Names the variable with a path. While that file exists, a worker does not start."""
DEATH: Final = b"death"
"""The form of an answer that a worker does not survive: a query of death."""
_RARE: Final = frozenset({"never", "blocked", "death"})
"""Each of them takes a worker away for a while."""


def body(name: bytes, size: int) -> bytes:
    """The body of the answer to that request."""
    pattern = sha256(name).digest()
    return (pattern * (size // len(pattern) + 1))[:size]


def digest(data: bytes) -> bytes:
    """A worker's digest of a request's body, so that its client can see that it is whole."""
    return b"%d-%08x" % (len(data), zlib.crc32(data))


def fault(seed: int, slot: int, name: bytes, rate: float, faults: tuple[str, ...]) -> str:
    """What the worker in that slot does wrong with that request; mostly nothing: ""."""
    if slot < GOOD:
        return ""
    dice = random.Random(f"{seed}/{slot}/{name.hex()}")
    if dice.random() >= rate:
        return ""
    chosen = dice.choice(faults)
    return "" if chosen in _RARE and dice.random() < 0.75 else chosen


def is_killed_by(form: bytes, slot: int) -> bool:
    """Does this request end the worker in that slot? The first one survives whatever comes."""
    return form == DEATH and slot > 0


def is_broken(slot: int) -> bool:
    """Can the program not start at present? That of the first slot always can."""
    return slot > 0 and Path(os.environ.get(BROKEN, os.devnull)).is_file()


def note(done: str) -> None:
    """A worker is about to do that, if anything. Written before: some do not survive it."""
    if done and (path := os.environ.get(DIARY)):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"a worker: {done}\n".encode())
        os.close(fd)


def noted(diary: Path) -> Counter[str]:
    """What all workers did wrong, and how often."""
    return Counter(diary.read_text().splitlines()) if diary.exists() else Counter()
