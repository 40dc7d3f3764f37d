"""Latencies in buckets: from 1 µs to 100 s, with an error below one per cent.

Each power of two is cut into 128 equal parts, as HdrHistogram does, so that a bucket is found
with a shift and not with a logarithm and histograms of different processes, rounds and tools
can be added. What is quicker than 1 µs is bucket 0, what takes longer than 100 s is in the
last bucket. A value is given back as the end of its bucket: never better than it was.
No I/O, no clock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Final

_BITS: Final = 7
_PARTS: Final = 1 << _BITS
_UNITS: Final = _PARTS * 1e6
"""In a second: so small that already the first microsecond has all its parts."""
_LONGEST_S: Final = 100.0


def index(seconds: float) -> int:
    """The bucket of a latency. Whatever is no latency (less than nothing) is in bucket 0."""
    units = int(min(seconds, _LONGEST_S) * _UNITS)
    if units < _PARTS:
        return 0
    shift = units.bit_length() - _BITS - 1
    return (shift << _BITS) + (units >> shift) - _PARTS + 1


def upper(bucket: int) -> float:
    """Where a bucket ends, in seconds: everything in it is below that (or 100 s and more)."""
    if bucket <= 0:
        return 1e-6
    shift, part = divmod(bucket - 1, _PARTS)
    return ((part + _PARTS + 1) << shift) / _UNITS


def merge(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    merged: Counter[int] = Counter()
    for counts in histograms:
        merged.update(counts)
    return dict(merged)


def percentile(counts: Mapping[int, int], share: float) -> float:
    """Seconds within which `share` (0 to 1) of all were done. 0: nothing was counted."""
    wanted = max(1, ceil(share * sum(counts.values())))
    for bucket in sorted(counts):
        wanted -= counts[bucket]
        if wanted <= 0:
            return upper(bucket)
    return 0.0
